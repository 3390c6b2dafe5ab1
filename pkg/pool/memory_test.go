package pool

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestWithoutMemoryToGrowSendersWait(t *testing.T) {
	page := os.Getpagesize()
	p := newPool(t, Config{FrameSize: page, Initial: 1, Max: 2})
	f := p.Get()
	next := p.memory.bytes[page : 2*page]
	if err := unix.Mprotect(next, unix.PROT_NONE); err != nil { // a page that cannot be had
		t.Fatal(err)
	}
	if g := p.Get(); g != nil {
		t.Fatalf("frame %d without memory", g.ID())
	}
	if s := p.Stats(); s.Waits != 1 || s.Frames != 1 || s.Grown != 0 {
		t.Errorf("%+v", s)
	}
	if err := unix.Mprotect(next, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	g := p.Get()
	if g == nil {
		t.Fatal("did not grow when there was memory again")
	}
	g.Buf()[0] = 1
	release([]*Frame{f, g})
}

// resident is how many pages of b have memory behind them.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	vec := make([]byte, (len(b)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

func TestOnlyFramesThatAreThereHaveMemory(t *testing.T) {
	page := os.Getpagesize()
	p := newPool(t, Config{FrameSize: page, Initial: 3, Max: 200, Reserve: 2})
	if n := resident(t, p.memory.bytes); n != 5 {
		t.Errorf("%d pages for 3 frames and 2 in reserve", n)
	}
	held := drain(t, p, 7)
	if n := resident(t, p.memory.bytes); n != 9 {
		t.Errorf("%d pages for 7 frames and 2 in reserve", n)
	}
	release(held)
}
