package target

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// written opens a session and writes one block; it returns the cache epoch and a flush of the session.
func written(t *testing.T, r *rig) (cacheEpoch uint64, a *client, session uint8) {
	t.Helper()
	r.admit("node-a", macA)
	a = r.client(macA)
	o := a.open(aoe.OpenSession, uuidA, 1, testGen)
	wantOK(t, a.call(a.write(tag(o.Epoch(), 1), 0, block(1, 1))))
	return o.CacheEpoch(), a, o.Epoch()
}

// TestLossAtCloseIsRemembered: the fdatasync of an orderly end fails. The kernel says so once; the next process has to know.
func TestLossAtCloseIsRemembered(t *testing.T) {
	r, d, _ := newDiskRig(t, ManagedAccess)
	before, _, _ := written(t, r)
	r.lossy = true
	d.failSync.Store(true)
	r.stop()
	d.failSync.Store(false)
	r.start()
	if o := r.client(macA).open(aoe.OpenSession, uuidA, 2, testGen); o.CacheEpoch() == before {
		t.Error("the cache epoch is the same though data may be gone")
	}
}

// TestMissingFileIsNotFlushed: a LUN whose file cannot be opened never says that its data are durable.
func TestMissingFileIsNotFlushed(t *testing.T) {
	r := newRig(t)
	r.lossy = true
	l := r.lun(ManagedAccess)
	written(t, r)
	r.stop()
	if err := os.Remove(filepath.Join(r.config.Dir, "luns", l.UUID+fileSuffix)); err != nil {
		t.Fatal(err)
	}
	r.start()
	a := r.client(macA)
	o := a.open(aoe.OpenSession, uuidA, 2, testGen)
	f := a.call(a.flush(tag(o.Epoch(), 1)))
	if f.IsError() {
		return
	}
	if ata, err := f.ATA(); err != nil || !aoe.StatusFailed(ata.Status()) {
		t.Errorf("flush of a LUN without a file: %v, %x", err, []byte(f))
	}
}

// fullMedia is a directory that takes no marks or no records.
type fullMedia struct {
	Media
	noMarks, noRecords atomic.Bool
}

func (m *fullMedia) Mark(name string) error {
	if m.noMarks.Load() {
		return unix.EROFS
	}
	return m.Media.Mark(name)
}

func (m *fullMedia) Update(changes ...Change) error {
	if m.noRecords.Load() {
		return unix.ENOSPC
	}
	return m.Media.Update(changes...)
}

type fullHost struct {
	testHost
	media *fullMedia
}

func (h fullHost) Open(dir string) (Media, error) {
	m, err := h.machine.Open(dir)
	h.media.Media = m
	return h.media, err
}

// TestLossIsRememberedOverKill: fdatasync fails once; the process is killed before the cache epoch is stored, and the flush's answer is
// lost. The next process has to know.
func TestLossIsRememberedOverKill(t *testing.T) {
	r, d, _ := newDiskRig(t, ManagedAccess)
	before, a, session := written(t, r)
	d.failSync.Store(true)
	l := r.shelf.at(3)
	l.control.Lock() // the epoch is not stored
	wantATA(t, a.call(a.flush(tag(session, 2))), 0x61, 0x04)
	killed := copyDir(t, r.config.Dir)
	l.control.Unlock()
	d.failSync.Store(false)
	r.lossy = true
	r.stop()
	r.config.Dir = killed
	r.start()
	if o := r.client(macA).open(aoe.OpenSession, uuidA, 2, testGen); o.CacheEpoch() == before {
		t.Error("the cache epoch is the same though data may be gone")
	}
	if marks, err := r.shelf.media.Marks(); err != nil || len(marks) > 0 {
		t.Errorf("marks that are stored as a cache epoch: %v, %v", marks, err)
	}
}

// TestLossAtCloseIsMarked: the same as TestLossAtCloseIsRemembered, but the process does not get so far as to store it.
func TestLossAtCloseIsMarked(t *testing.T) {
	number := uint16(testShelf)
	media := new(fullMedia)
	var d *disk
	r := newRigAt(t, Config{Dir: t.TempDir(), Number: &number, Host: fullHost{media: media}, wrap: func(b File) File {
		d = newDisk(b)
		return d
	}})
	r.lun(ManagedAccess)
	before, _, _ := written(t, r)
	r.lossy = true
	d.failSync.Store(true)
	media.noRecords.Store(true)
	r.stop()
	media.noRecords.Store(false)
	r.start()
	if o := r.client(macA).open(aoe.OpenSession, uuidA, 2, testGen); o.CacheEpoch() == before {
		t.Error("the cache epoch is the same though data may be gone")
	}
}

// TestUnmarkedLossIsNotTold: while nothing but the process knows of the loss, the flush is not answered.
func TestUnmarkedLossIsNotTold(t *testing.T) {
	number := uint16(testShelf)
	media := new(fullMedia)
	var d *disk
	r := newRigAt(t, Config{Dir: t.TempDir(), Number: &number, Host: fullHost{media: media}, wrap: func(b File) File {
		d = newDisk(b)
		return d
	}})
	r.lun(ManagedAccess)
	_, a, session := written(t, r)
	d.failSync.Store(true)
	media.noMarks.Store(true)
	l := r.shelf.at(3)
	l.control.Lock() // the epoch is not stored
	store := sync.OnceFunc(l.control.Unlock)
	defer store()
	a.send(a.flush(tag(session, 2)))
	for i := uint32(3); ; i++ {
		if f := a.call(a.read(tag(session, i), 0, 1)); f.IsError() {
			wantError(t, f, aoe.ErrorUnavailable)
			break
		}
	}
	if err := l.drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantError(t, a.call(a.read(tag(session, 1000), 0, 1)), aoe.ErrorUnavailable)
	for _, f := range a.got {
		t.Errorf("answered: %x", []byte(f))
	}
	d.failSync.Store(false)
	store()
	for {
		if f := a.call(a.flush(tag(session, 2))); !f.IsError() {
			wantATA(t, f, 0x61, 0x04)
			return
		}
	}
}

// onceFile has one write-back error to tell, to whoever asks first, as the kernel does per descriptor.
type onceFile struct {
	File
	armed bool
}

func (b *onceFile) Grow(int64) error {
	b.armed = false
	return errors.Join(ErrNotDurable, unix.EIO)
}

func (b *onceFile) Sync() error {
	if b.armed {
		b.armed = false
		return unix.EIO
	}
	return b.File.Sync()
}

// TestLossHeardByGrow: the fsync of Grow is the one that hears of the loss; the next flush must not succeed.
func TestLossHeardByGrow(t *testing.T) {
	number := uint16(testShelf)
	var back *onceFile
	r := newRigAt(t, Config{Dir: t.TempDir(), Number: &number, wrap: func(b File) File {
		back = &onceFile{File: b}
		return back
	}})
	l := r.lun(ManagedAccess)
	_, a, session := written(t, r)
	back.armed = true
	if _, err := r.shelf.Grow(l.Slot, testGen, l.SizeBytes+4096); !errors.Is(err, unix.EIO) {
		t.Fatalf("grow: %v, want EIO", err)
	}
	f := a.call(a.flush(tag(session, 2)))
	if f.IsError() {
		return // "unavailable": the session has to be opened anew
	}
	if ata, err := f.ATA(); err != nil || !aoe.StatusFailed(ata.Status()) {
		t.Errorf("flush after the loss: %v, %x", err, []byte(f))
	}
}
