package target

import (
	"errors"
	"os"
	"path/filepath"
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
	if err := os.Remove(filepath.Join(r.config.Dir, "luns", fileName(l.UUID))); err != nil {
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

// onceBackend has one write-back error to tell, to whoever asks first, as the kernel does per descriptor.
type onceBackend struct {
	backend
	armed bool
}

func (b *onceBackend) grow(int64) error {
	b.armed = false
	return errors.Join(errSync, unix.EIO)
}

func (b *onceBackend) sync() error {
	if b.armed {
		b.armed = false
		return unix.EIO
	}
	return b.backend.sync()
}

// TestLossHeardByGrow: the fsync of Grow is the one that hears of the loss; the next flush must not succeed.
func TestLossHeardByGrow(t *testing.T) {
	number := uint16(testShelf)
	var back *onceBackend
	r := newRigAt(t, Config{Dir: t.TempDir(), Number: &number, wrap: func(b backend) backend {
		back = &onceBackend{backend: b}
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
