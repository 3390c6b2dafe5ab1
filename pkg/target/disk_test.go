package target

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// disk is a File that hangs or fails when told to.
type disk struct {
	File
	failSync  atomic.Bool
	failWrite atomic.Bool
	syncs     atomic.Int64
	writes    atomic.Int64
	entered   chan struct{} // a write that hangs has begun
	cached    atomic.Bool   // ports write by themselves

	mu     sync.Mutex
	hang   chan struct{} // writes wait for it; nil: they do not
	inPort func()        // called when a port writes by itself
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

// Cached lets the port write if cached is set, as on a file system that can; else a write goes through a worker, where it can hang.
func (d *disk) Cached(t *uring.Transfer) bool {
	if !t.Write {
		return d.File.Cached(t)
	}
	if !d.cached.Load() || d.failWrite.Load() {
		t.Err = unix.EOPNOTSUPP
		return true
	}
	d.mu.Lock()
	inPort := d.inPort
	d.mu.Unlock()
	if inPort != nil {
		inPort()
	}
	d.writes.Add(1)
	t.Err = d.File.WriteAt(t.Data, t.Off, false)
	return true
}

// letPortsWrite has ports write by themselves, and calls f, if it is not nil, when they do.
func (d *disk) letPortsWrite(f func()) {
	d.mu.Lock()
	d.inPort = f
	d.mu.Unlock()
	d.cached.Store(true)
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
