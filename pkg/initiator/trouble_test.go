package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// TestPoolCeiling: the network releases nothing for 2 s. Requests wait, none fails, the pool stops at its ceiling, and the target's
// answers go on being taken.
func TestPoolCeiling(t *testing.T) {
	profile := lan
	profile.ReleaseDelay = 2 * time.Second
	w := newWorld(t, 1, profile, func(c *CoreConfig) { c.PoolMax = 64 })
	w.attach()
	var c waiter
	data := pattern(1, 16)
	requests := make([]Request, 1000)
	for i := range requests {
		requests[i] = Request{Op: OpWrite, LBA: uint64(i%100) * 16, Sectors: 16, Data: data, Done: &c}
		w.core.Submit(w.now, &requests[i])
	}
	w.run(time.Second)
	s := w.core.Stats()
	if s.PoolFrames != 64 || s.PoolGrown == 0 || s.PoolWaits == 0 || s.PoolCapped == 0 || s.PoolCapped > s.PoolWaits {
		t.Errorf("after 1 s: %+v", s)
	}
	if c.done == 0 || c.done >= 1000 || w.core.Pending() != 1000-c.done {
		t.Errorf("after 1 s %d are done and %d pending", c.done, w.core.Pending())
	}
	if !w.until(2*time.Minute, func() bool { return c.done == 1000 }) {
		t.Fatalf("%d of 1000 done", c.done)
	}
	for i := range requests {
		if requests[i].Err != nil {
			t.Fatalf("request %d: %v", i, requests[i].Err)
		}
	}
	if s := w.core.Stats(); s.PoolFrames > 64 {
		t.Errorf("%d frames above the ceiling of 64", s.PoolFrames)
	}
}

// TestErrorAnswers is what each refusal means for a request.
func TestErrorAnswers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		disturb func(*modelTarget)
		want    error
	}{
		{"command not recognised", func(m *modelTarget) { m.refuse = aoe.ErrorCommand }, ErrUnsupported},
		{"bad argument, whatever the size", func(m *modelTarget) { m.refuse = aoe.ErrorArgument }, ErrIO},
		{"version", func(m *modelTarget) { m.refuse = aoe.ErrorVersion }, ErrIO},
		{"reserved", func(m *modelTarget) { m.refuse = aoe.ErrorReserved }, ErrReserved},
		{"an unknown one", func(m *modelTarget) { m.refuse = 99 }, ErrIO},
		{"ATA error", func(m *modelTarget) { m.fail = aoe.StatusDRDY | aoe.StatusERR }, ErrIO},
		{"device fault", func(m *modelTarget) { m.fail = aoe.StatusDF }, ErrIO},
		{"busy", func(m *modelTarget) { m.fail = aoe.StatusBSY }, ErrIO},
		{"taken off", func(m *modelTarget) { m.admitted = false; m.restart(false) }, ErrNotAdmitted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 2, lan, nil)
			w.attach()
			tc.disturb(w.target)
			before := w.now
			if err := w.write(0, pattern(1, 100)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if took := w.now - before; took > 100*time.Millisecond {
				t.Errorf("a refusal took %v", took)
			}
			if w.core.table.used() != 0 || w.core.Pending() != 0 {
				t.Errorf("%d frames and %d requests are left", w.core.table.used(), w.core.Pending())
			}
		})
	}
}

// TestBackAfterRefusal: a node that is admitted again, a target that is not reserved any more.
func TestBackAfterRefusal(t *testing.T) {
	w := newWorld(t, 3, lan, nil)
	w.attach()
	w.target.admitted = false
	w.target.restart(false)
	if err := w.write(0, pattern(1, 1)); !errors.Is(err, ErrNotAdmitted) {
		t.Fatal(err)
	}
	if s := w.core.State(); s.Phase != PhaseFailed || !errors.Is(s.Err, ErrNotAdmitted) {
		t.Errorf("state %+v", s)
	}
	w.target.admitted = true
	w.run(10 * time.Second)
	if err := w.write(0, pattern(1, 1)); err != nil {
		t.Error(err)
	}
}

// TestUnavailableForeign: error 3 without sessions is waited out.
func TestUnavailableForeign(t *testing.T) {
	w := newWorld(t, 4, lan, func(c *CoreConfig) { c.Generation = "" })
	w.target.asVblade()
	w.attach()
	w.target.refuse = aoe.ErrorUnavailable
	var c waiter
	r := Request{Op: OpWrite, Sectors: 8, Data: pattern(3, 8), Done: &c}
	w.core.Submit(w.now, &r)
	frames := w.target.seenFrames
	w.run(10 * time.Second)
	if c.done != 0 {
		t.Fatalf("done with %v", r.Err)
	}
	if sent := w.target.seenFrames - frames; sent > 30 {
		t.Errorf("%d frames in 10 s", sent)
	}
	w.target.refuse = aoe.NoError
	if !w.until(10*time.Second, func() bool { return c.done == 1 }) || r.Err != nil {
		t.Errorf("after the target was back: done %d, %v", c.done, r.Err)
	}
}

// TestLostCache is invariant 4: acknowledged but not flushed data may be gone, and every flush says so from then on. Nothing is written then, either.
func TestLostCache(t *testing.T) {
	for _, tc := range []struct {
		name  string
		op    Op
		flush bool // before the target loses its cache
		lost  bool
	}{{"with unflushed writes", OpWrite, false, true}, {"with an unflushed trim", OpTrim, false, true}, {"with everything flushed", OpWrite, true, false}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 5, lan, nil)
			w.attach()
			if err := w.do(&Request{Op: tc.op, Sectors: 8, Data: pattern(1, 8)}); err != nil {
				t.Fatal(err)
			}
			if tc.flush {
				if err := w.flush(); err != nil {
					t.Fatal(err)
				}
			}
			before, err := w.read(8, 8)
			if err != nil {
				t.Fatal(err)
			}
			w.target.restart(true)
			for _, r := range []*Request{
				{Op: OpWrite, LBA: 8, Sectors: 8, Data: pattern(2, 8)}, // the first that hears of it
				{Op: OpWrite, FUA: true, LBA: 8, Sectors: 8, Data: pattern(3, 8)},
				{Op: OpTrim, LBA: 8, Sectors: 8},
			} {
				if err := w.do(r); errors.Is(err, ErrLost) != tc.lost {
					t.Errorf("%s (FUA %v): %v", r.Op, r.FUA, err)
				}
			}
			for range 2 {
				if err := w.flush(); errors.Is(err, ErrLost) != tc.lost {
					t.Errorf("flush: %v", err)
				}
			}
			if s := w.core.State(); s.Lost != tc.lost || s.CacheEpoch != 2 {
				t.Errorf("state %+v", s)
			}
			after, err := w.read(8, 8)
			if err != nil {
				t.Errorf("reading goes on: %v", err)
			}
			if tc.lost && !bytes.Equal(before, after) {
				t.Error("sectors were changed after the loss")
			}
		})
	}
}

// TestOutstandingWhenCacheIsLost: what was on its way must not succeed in the new session, nor what waited behind it; reads do.
func TestOutstandingWhenCacheIsLost(t *testing.T) {
	w := newWorld(t, 6, lan, nil)
	w.attach()
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	w.target.off = true
	var c waiter
	requests := []*Request{
		{Op: OpFlush}, {Op: OpRead, Sectors: 8, Data: make([]byte, 4096)}, {Op: OpWrite, FUA: true, LBA: 8, Sectors: 8, Data: pattern(2, 8)},
		{Op: OpTrim, LBA: 16, Sectors: 8}, {Op: OpWrite, LBA: 24, Sectors: 2000, Data: pattern(2, 2000)}, // more than fits the window
	}
	for _, r := range requests {
		r.Done = &c
		w.core.Submit(w.now, r)
	}
	w.run(3 * time.Second)
	w.target.restart(true)
	if !w.until(10*time.Second, func() bool { return c.done == len(requests) }) {
		t.Fatalf("%d of %d are done", c.done, len(requests))
	}
	for _, r := range requests {
		if want := r.Op != OpRead; errors.Is(r.Err, ErrLost) != want || !want && r.Err != nil {
			t.Errorf("%s at %d: %v", r.Op, r.LBA, r.Err)
		}
	}
	if got, err := w.read(8, 2016); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("something was written after the loss (%v)", err)
	}
}

// TestFlushError: what the target could not make durable is lost, too.
func TestFlushError(t *testing.T) {
	w := newWorld(t, 7, lan, nil)
	w.attach()
	w.target.fail = aoe.StatusDF | aoe.StatusERR
	if err := w.flush(); !errors.Is(err, ErrIO) {
		t.Errorf("first flush: %v", err)
	}
	w.target.fail = 0
	if err := w.flush(); !errors.Is(err, ErrLost) {
		t.Errorf("second flush: %v", err)
	}
	if err := w.do(&Request{Op: OpWrite, FUA: true, Sectors: 8, Data: pattern(1, 8)}); !errors.Is(err, ErrLost) {
		t.Errorf("FUA write after it: %v", err)
	}
}

// TestFlushErrorAtAttachment: what the target could not make durable is not this attachment's, unless a process before had it.
func TestFlushErrorAtAttachment(t *testing.T) {
	for _, recovered := range []bool{false, true} {
		w := newWorld(t, 7, lan, func(c *CoreConfig) { c.Generation, c.Recovered = "", recovered })
		w.target.asVblade()
		w.target.model, w.target.fail = "disk", aoe.StatusDF|aoe.StatusERR
		w.attach()
		w.target.fail = 0
		for _, op := range []Op{OpWrite, OpFlush} {
			if err := w.do(&Request{Op: op, Sectors: 8, Data: pattern(1, 8)}); errors.Is(err, ErrLost) != recovered {
				t.Errorf("taken over %v: %s: %v", recovered, op, err)
			}
		}
		if !w.core.Info().Flush {
			t.Errorf("taken over %v: no flush is offered", recovered)
		}
	}
}

// TestCacheEpochOfAnEarlierProcess: nobody knows any more what was flushed, so a changed epoch counts as a loss.
func TestCacheEpochOfAnEarlierProcess(t *testing.T) {
	for epoch, lost := range map[uint64]bool{0: false, 1: false, 9: true} {
		w := newWorld(t, 8, lan, func(c *CoreConfig) { c.CacheEpoch = epoch })
		w.attach()
		if got := w.core.State().Lost; got != lost {
			t.Errorf("recorded epoch %d: lost %v, want %v", epoch, got, lost)
		}
	}
}

// TestUnflushedWritesOfAnEarlierProcess: the target loses its cache after the take-over. What the earlier process acknowledged may be gone.
func TestUnflushedWritesOfAnEarlierProcess(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		w := newWorld(t, 8, lan, func(c *CoreConfig) { c.CacheEpoch, c.Recovered = 1, true })
		w.attach()
		if flushed {
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
		}
		w.target.restart(true)
		w.run(time.Second)
		if _, err := w.read(0, 8); err != nil {
			t.Fatal(err)
		}
		if err := w.flush(); errors.Is(err, ErrLost) == flushed {
			t.Errorf("flushed before the loss: %v, flush after it: %v", flushed, err)
		}
	}
}

// TestStaleIncarnation: a clock that went back does not keep us out.
func TestStaleIncarnation(t *testing.T) {
	w := newWorld(t, 9, lan, nil)
	w.target.incarnation = 1 << 40
	w.attach()
	if got := w.core.State().Incarnation; got <= 1<<40 {
		t.Errorf("incarnation %d", got)
	}
}

// TestDeadTime: with one, requests fail after it, and again at once, until the target is back; without one they wait.
func TestDeadTime(t *testing.T) {
	w := newWorld(t, 10, lan, func(c *CoreConfig) { c.DeadTime = 30 * time.Second })
	w.attach()
	w.target.off = true
	w.run(time.Minute) // idle time is not dead time
	before := w.now
	if err := w.write(0, pattern(1, 40)); !errors.Is(err, ErrDead) {
		t.Fatal(err)
	}
	if took := w.now - before; took < 30*time.Second || took > 31*time.Second {
		t.Errorf("took %v", took)
	}
	before = w.now
	if err := w.write(0, pattern(1, 40)); !errors.Is(err, ErrDead) || w.now != before {
		t.Errorf("the next: %v after %v", err, w.now-before)
	}
	w.target.off = false
	w.run(5 * time.Second)
	if err := w.write(0, pattern(1, 40)); err != nil {
		t.Errorf("after the target came back: %v", err)
	}
}

func TestNoDeadTimeWaits(t *testing.T) {
	w := newWorld(t, 11, lan, nil)
	w.attach()
	w.target.off = true
	var c waiter
	data := pattern(1, 40)
	r := Request{Op: OpWrite, Sectors: 40, Data: data, Done: &c}
	w.core.Submit(w.now, &r)
	before := w.target.seenFrames
	w.run(10 * time.Minute)
	if c.done != 0 {
		t.Fatalf("done with %v", r.Err)
	}
	if s := w.core.State(); s.Phase != PhaseStalled {
		t.Errorf("state %+v", s)
	}
	if sent := w.target.seenFrames - before; sent > 1500 {
		t.Errorf("%d frames in 10 minutes to a target that is off", sent)
	}
	w.target.restart(false)
	w.target.advertise()
	before2 := w.now
	if !w.until(5*time.Second, func() bool { return c.done == 1 }) || r.Err != nil || !bytes.HasPrefix(w.target.disk, data) {
		t.Fatalf("after the target was back: done %d, %v", c.done, r.Err)
	}
	if took := w.now - before2; took > 100*time.Millisecond {
		t.Errorf("%v from the advertisement to the answer", took)
	}
}

// TestFail gives everything up at once, and nothing of it is executed over what comes later.
func TestFail(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		w := newWorld(t, 12, linktest.Profile{Delay: 300 * time.Millisecond}, func(c *CoreConfig) {
			if foreign {
				c.Generation = ""
			}
		})
		if foreign {
			w.target.asVblade()
		}
		w.attach()
		var c waiter
		old, newer := pattern(1, 200), pattern(2, 200)
		r := Request{Op: OpWrite, Sectors: 200, Data: old, Done: &c}
		w.core.Submit(w.now, &r)
		w.run(10 * time.Millisecond) // on the wire, and slow
		w.core.Fail(w.now, ErrIO)
		if c.done != 1 || !errors.Is(r.Err, ErrIO) || w.core.table.used() != 0 {
			t.Fatalf("done %d with %v, %d frames left", c.done, r.Err, w.core.table.used())
		}
		if err := w.write(0, newer); err != nil {
			t.Fatal(err)
		}
		w.run(5 * time.Second)
		if !bytes.HasPrefix(w.target.disk, newer) {
			t.Errorf("foreign %v: given-up data came later", foreign)
		}
	}
}

// TestClose tells the target.
func TestClose(t *testing.T) {
	w := newWorld(t, 13, lan, nil)
	w.attach()
	w.core.Close(w.now)
	if !w.until(time.Second, func() bool { return w.core.Closed(w.now) }) || w.target.closes != 1 {
		t.Errorf("closed %v, target heard %d", w.core.Closed(w.now), w.target.closes)
	}
	if _, err := w.read(0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("a request after Close: %v", err)
	}
}

func TestCloseWithoutAnswer(t *testing.T) {
	w := newWorld(t, 14, lan, nil)
	w.attach()
	w.target.off = true
	w.core.Close(w.now)
	if !w.until(5*time.Second, func() bool { return w.core.Closed(w.now) }) {
		t.Error("never closed")
	}
}
