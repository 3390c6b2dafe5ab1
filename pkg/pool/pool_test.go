package pool

import (
	"errors"
	"strings"
	"testing"
)

func newPool(t *testing.T, c Config) *Pool {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// drain gets n frames and fails if there are fewer.
func drain(t *testing.T, p *Pool, n int) []*Frame {
	t.Helper()
	var out []*Frame
	for range n {
		f := p.Get()
		if f == nil {
			t.Fatalf("only %d of %d frames: %+v", len(out), n, p.Stats())
		}
		out = append(out, f)
	}
	return out
}

func release(frames []*Frame) {
	for _, f := range frames {
		f.Release()
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{}, {FrameSize: 1514, Max: -1}, {FrameSize: -1, Initial: 4}, {FrameSize: 64, Initial: 5, Max: 4},
		{FrameSize: 64, Initial: -1}, {FrameSize: 64, Reserve: -1},
	} {
		if p, err := New(c); err == nil {
			t.Errorf("%+v made a pool %+v", c, p.Stats())
		}
	}
}

func TestDefaultCeiling(t *testing.T) {
	if s := newPool(t, Config{FrameSize: 64, Initial: 4}).Stats(); s.Ceiling != DefaultMax || s.Frames != 4 {
		t.Errorf("%+v", s)
	}
	if s := newPool(t, Config{FrameSize: 64, Initial: 300}).Stats(); s.Ceiling != 300 {
		t.Errorf("%+v", s)
	}
}

func TestGrowsByOneUpToTheCeiling(t *testing.T) {
	p := newPool(t, Config{FrameSize: 9014, Initial: 2, Max: 5})
	held := drain(t, p, 2)
	for i := range 3 {
		held = append(held, drain(t, p, 1)...)
		if s := p.Stats(); s.Grown != int64(i+1) || s.Frames != int64(i+3) || s.Free != 0 {
			t.Fatalf("after growing %d times: %+v", i+1, s)
		}
	}
	for range 2 {
		if f := p.Get(); f != nil {
			t.Fatalf("frame %d above the ceiling", f.ID())
		}
	}
	if s := p.Stats(); s.Waits != 2 || s.Frames != 5 {
		t.Fatalf("at the ceiling: %+v", s)
	}
	held[3].Release()
	if f := p.Get(); f != held[3] {
		t.Fatalf("got %v after frame 3 was released", f)
	}
	release(held)
	if s := p.Stats(); s != (Stats{Ceiling: 5, Frames: 5, Free: 5, Grown: 3, Waits: 2, Capped: 2}) {
		t.Errorf("at the end: %+v", s)
	}
}

func TestDoesNotGrowWhileOneIsFree(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1, Max: 8})
	for range 100 {
		drain(t, p, 1)[0].Release()
	}
	if s := p.Stats(); s.Frames != 1 || s.Grown != 0 {
		t.Errorf("%+v", s)
	}
}

func TestLastReleaseReturns(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1, Max: 1})
	f := p.Get()
	if f.Shared() {
		t.Error("shared from the start")
	}
	f.Hold()
	f.Hold()
	if !f.Shared() {
		t.Error("not shared with three holds")
	}
	for i := range 2 {
		f.Release()
		if p.Get() != nil {
			t.Fatalf("free after %d of 3 releases", i+1)
		}
	}
	f.Release()
	if f = p.Get(); f == nil || f.Shared() {
		t.Fatal("not free after the last release")
	}
	f.Release()
}

func TestReserveIsBesideTheCeiling(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 2, Max: 2, Reserve: 2})
	held := drain(t, p, 2)
	for range 2 {
		f := p.GetReserve()
		if f == nil {
			t.Fatal("no reserve")
		}
		held = append(held, f)
	}
	if p.GetReserve() != nil {
		t.Fatal("a third of two in the reserve")
	}
	held[2].Release()
	if p.Get() != nil {
		t.Fatal("a reserve frame came back as an ordinary one")
	}
	if f := p.GetReserve(); f != held[2] {
		t.Fatal("the reserve did not come back")
	}
	release(held)
	if s := p.Stats(); s != (Stats{Ceiling: 2, Frames: 2, Free: 2, ReserveFree: 2, Waits: 1, Capped: 1, ReserveWaits: 1}) {
		t.Errorf("%+v", s)
	}
}

func TestFramesDoNotOverlap(t *testing.T) {
	for _, size := range []int{1, 60, 64, 1514, 4096, 9014, 65549} {
		p := newPool(t, Config{FrameSize: size, Initial: 2, Max: 5, Reserve: 2})
		frames := append(drain(t, p, 5), p.GetReserve(), p.GetReserve())
		for i, f := range frames {
			if len(f.Buf()) != size || cap(f.Buf()) != size {
				t.Fatalf("buffer of %d, capacity %d, want %d", len(f.Buf()), cap(f.Buf()), size)
			}
			for j := range f.Buf() {
				f.Buf()[j] = byte(i)
			}
		}
		for i, f := range frames {
			for j, c := range f.Buf() {
				if c != byte(i) {
					t.Fatalf("size %d: byte %d of frame %d is %d", size, j, i, c)
				}
			}
		}
		release(frames)
	}
}

func TestTouchLeavesNeighboursAlone(t *testing.T) {
	page := []byte(strings.Repeat("x", 300))
	touch(page[100:200], 64)
	for i, c := range page {
		if c != 'x' && (i < 100 || i >= 200) {
			t.Errorf("byte %d written", i)
		}
	}
}

func TestBytes(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1})
	f := p.Get()
	if len(f.Bytes()) != 0 {
		t.Errorf("a fresh frame has %d bytes", len(f.Bytes()))
	}
	f.SetLen(36)
	if len(f.Bytes()) != 36 || &f.Bytes()[0] != &f.Buf()[0] {
		t.Errorf("%d bytes", len(f.Bytes()))
	}
	mustPanic(t, "length above the buffer", func() { f.SetLen(101) })
	f.Release()
	if f = p.Get(); len(f.Bytes()) != 0 {
		t.Errorf("a frame used again has %d bytes", len(f.Bytes()))
	}
	f.Release()
}

func TestMisusePanics(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1})
	f := p.Get()
	f.Release()
	mustPanic(t, "second release", f.Release)
	mustPanic(t, "hold of a free frame", f.Hold)
}

func mustPanic(t *testing.T, what string, do func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	do()
}

func TestCloseWithHeldFrames(t *testing.T) {
	p, err := New(Config{FrameSize: 100, Initial: 3, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	held := append(drain(t, p, 2), p.GetReserve())
	held[1].Release()
	err = p.Close()
	if !errors.Is(err, ErrHeld) || !strings.HasSuffix(err.Error(), ": [0 256]") {
		t.Fatalf("close: %v", err)
	}
	if p.Get() != nil || p.GetReserve() != nil {
		t.Fatal("a closed pool gives frames")
	}
	held[0].Buf()[0] = 1 // the network may still read it: it has to be there
	held[0].Release()
	held[2].Release()
	if held[0].Buf() != nil {
		t.Error("memory kept after the last release")
	}
	if err := p.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	p := newPool(t, Config{FrameSize: 9014, Initial: 1, Max: 200, Reserve: 1})
	var held []*Frame
	held = make([]*Frame, 0, 200)
	if n := testing.AllocsPerRun(100, func() {
		f := p.Get()
		f.SetLen(60)
		f.Hold()
		f.Release()
		f.Release()
		p.GetReserve().Release()
	}); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	if n := testing.AllocsPerRun(150, func() { held = append(held, p.Get()) }); n != 0 {
		t.Errorf("%v allocations to grow", n)
	}
	release(held)
}

func TestFreedFramesArePoisoned(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1})
	f := p.Get()
	b := f.Buf()
	b[50] = 1
	f.Release()
	want := byte(1)
	if poisonFreed {
		want = poison
	}
	if b[50] != want {
		t.Errorf("freed byte is %#x, want %#x", b[50], want)
	}
}

func TestStatsFromAnotherGoroutine(t *testing.T) {
	p := newPool(t, Config{FrameSize: 100, Initial: 1, Max: 4})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if s := p.Stats(); s.Frames > s.Ceiling {
				t.Errorf("%+v", s)
				return
			}
		}
	}()
	for range 1000 {
		release(drain(t, p, 4))
	}
	close(stop)
	<-done
}

func BenchmarkGetRelease(b *testing.B) {
	p, err := New(Config{FrameSize: 9014, Initial: 16})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Get().Release()
	}
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
}
