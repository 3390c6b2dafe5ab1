package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// filePages is a file in memory with the data of requests, each at the place that it has on the disk.
type filePages struct {
	t  testing.TB
	fd int
}

func newFilePages(t testing.TB) *filePages {
	t.Helper()
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &filePages{t, fd}
}

func (p *filePages) put(b []byte, lba uint64) {
	if _, err := unix.Pwrite(p.fd, b, int64(lba)*aoe.SectorSize); err != nil {
		p.t.Error(err)
	}
}

func (p *filePages) get(b []byte, lba uint64) {
	if _, err := unix.Pread(p.fd, b, int64(lba)*aoe.SectorSize); err != nil {
		p.t.Error(err)
	}
}

// pagesFrom is the pages of a request that begins at lba.
type pagesFrom struct {
	*filePages
	lba uint64
}

// Place implements Pages.
func (p pagesFrom) Place(off int64) (fd int, at int64) {
	return p.fd, int64(p.lba)*aoe.SectorSize + off
}

// brokenFrom is pages that are gone from a part of the request on.
type brokenFrom struct {
	pagesFrom
	off int64
}

// Place implements Pages.
func (p brokenFrom) Place(off int64) (fd int, at int64) {
	if off >= p.off {
		return -1, 0
	}
	return p.pagesFrom.Place(off)
}

// paged is a world whose core copies with a batch, perhaps on more interfaces, and pages.
func paged(t *testing.T, more ...aoe.MAC) (*world, *filePages) {
	batch, err := uring.NewBatch(8)
	if err != nil {
		t.Logf("no io_uring on this machine: %v", err)
	}
	t.Cleanup(func() {
		if err := batch.Close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, 1, linktest.Profile{}, func(c *CoreConfig) { c.Batch = batch })
	for _, mac := range more {
		w.plug(mac)
	}
	w.attach()
	w.run(time.Second)
	return w, newFilePages(t)
}

// TestPages: a write's data come from pages, a read's go there; other parts of them stay what they are.
func TestPages(t *testing.T) {
	w, pages := paged(t)
	data := pattern(3, 100)
	pages.put(data, 7)
	if err := w.do(&Request{Op: OpWrite, LBA: 7, Sectors: 100, Pages: pagesFrom{pages, 7}}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.target.disk[7*aoe.SectorSize:][:len(data)], data) {
		t.Error("the disk does not hold what the pages did")
	}
	pages.put(make([]byte, 200*aoe.SectorSize), 0)
	if err := w.do(&Request{Op: OpRead, LBA: 17, Sectors: 80, Pages: pagesFrom{pages, 17}}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 200*aoe.SectorSize)
	pages.get(got, 0)
	want := make([]byte, len(got))
	copy(want[17*aoe.SectorSize:], data[10*aoe.SectorSize:][:80*aoe.SectorSize])
	if !bytes.Equal(got, want) {
		t.Error("the pages do not hold what was read, or more than that")
	}
}

// TestPagesGone: a request whose pages cannot be reached fails, and what was in the frames before does not get to the disk.
func TestPagesGone(t *testing.T) {
	for _, from := range []int64{0, 32 * aoe.SectorSize} {
		w, pages := paged(t)
		old, data := pattern(1, 64), pattern(2, 64)
		for range 4 { // so that frames have old data in them
			if err := w.write(100, bytes.Repeat([]byte{0xbd}, 64*aoe.SectorSize)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.write(0, old); err != nil {
			t.Fatal(err)
		}
		pages.put(data, 0)
		r := &Request{Op: OpWrite, LBA: 0, Sectors: 64, Pages: brokenFrom{pagesFrom{pages, 0}, from}}
		if err := w.do(r); !errors.Is(err, ErrIO) {
			t.Errorf("a write without its data: %v", err)
		}
		w.run(3 * time.Second)
		for i := range 64 {
			at := i * aoe.SectorSize
			sector := w.target.disk[at:][:aoe.SectorSize]
			if isOld := bytes.Equal(sector, old[at:][:aoe.SectorSize]); !isOld && (int64(at) >= from || !bytes.Equal(sector, data[at:][:aoe.SectorSize])) {
				t.Fatalf("sector %d holds what nobody wrote there", i)
			}
		}
		if err := w.do(&Request{Op: OpRead, LBA: 0, Sectors: 64, Pages: brokenFrom{pagesFrom{pages, 0}, from}}); !errors.Is(err, ErrIO) {
			t.Errorf("a read that nobody can take: %v", err)
		}
		if err := w.write(0, data); err != nil {
			t.Errorf("the next write: %v", err)
		}
		if got, err := w.read(0, 64); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the next read: %v", err)
		}
	}
}

// TestPagesGivenUp: a request may be completed before its frames are handed out; its pages belong to somebody else then.
func TestPagesGivenUp(t *testing.T) {
	w, pages := paged(t)
	data := pattern(5, 32)
	pages.put(data, 0)
	var c waiter
	w.core.Submit(w.now, &Request{Op: OpWrite, LBA: 0, Sectors: 32, Pages: pagesFrom{pages, 0}, Done: &c})
	w.core.Fail(w.now, ErrIO)
	if c.done != 1 {
		t.Fatalf("completed %d times", c.done)
	}
	pages.put(bytes.Repeat([]byte{0xbd}, len(data)), 0)
	w.run(3 * time.Second)
	if bytes.Contains(w.target.disk, []byte{0xbd, 0xbd}) {
		t.Error("the disk holds somebody else's data")
	}
}

// TestPagesOnAnotherPath: a frame is copied for another path before it was handed out for its own.
func TestPagesOnAnotherPath(t *testing.T) {
	for dropped := range LinkID(2) {
		w, pages := paged(t, ourMAC2)
		if n := len(w.core.Paths(nil)); n != 2 {
			t.Fatalf("%d paths", n)
		}
		for range 20 {
			if err := w.write(100, bytes.Repeat([]byte{0xbd}, 64*aoe.SectorSize)); err != nil {
				t.Fatal(err)
			}
		}
		data := pattern(9, 128)
		pages.put(data, 0)
		var c waiter
		w.core.Submit(w.now, &Request{Op: OpWrite, LBA: 0, Sectors: 128, Pages: pagesFrom{pages, 0}, Done: &c})
		w.net.Block(w.macs[dropped], targetMAC)
		w.core.DropLink(w.now, dropped)
		if !w.until(time.Minute, func() bool { return c.done > 0 }) || c.last.Err != nil {
			t.Fatalf("%d done, %v", c.done, c.last)
		}
		if !bytes.Equal(w.target.disk[:len(data)], data) {
			t.Errorf("link %d dropped: the disk does not hold what the pages did", dropped)
		}
	}
}
