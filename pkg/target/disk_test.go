package target

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// disk is a File that hangs or fails when told to.
type disk struct {
	File
	failSync  atomic.Bool
	failWrite atomic.Bool
	syncs     atomic.Int64
	writes    atomic.Int64
	entered   chan struct{} // a write that hangs has begun

	mu   sync.Mutex
	hang chan struct{} // writes wait for it; nil: they do not
}

func newDisk(b File) *disk { return &disk{File: b, entered: make(chan struct{}, 1000)} }

// block has writes hang until release.
func (d *disk) block() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hang := make(chan struct{})
	d.hang = hang
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hang = nil
		close(hang)
	})
}

func (d *disk) WriteAt(p []byte, off int64, durable bool) error {
	d.mu.Lock()
	hang := d.hang
	d.mu.Unlock()
	if hang != nil {
		d.entered <- struct{}{}
		<-hang
	}
	d.writes.Add(1)
	if d.failWrite.Load() {
		return unix.EIO
	}
	return d.File.WriteAt(p, off, durable)
}

func (d *disk) Sync() error {
	d.syncs.Add(1)
	if d.failSync.Load() {
		return unix.EIO
	}
	return d.File.Sync()
}
