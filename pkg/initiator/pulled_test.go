package initiator

import (
	"testing"
	"time"
)

// slowest submits every request again as soon as it is done and knows the longest that one took.
type slowest struct {
	w       *world
	since   map[*Request]time.Duration
	longest time.Duration
	stop    bool
	out     int
	errs    int
}

func (s *slowest) submit(r *Request) {
	s.since[r] = s.w.now
	s.w.core.Submit(s.w.now, r)
}

func (s *slowest) Complete(r *Request) {
	s.longest = max(s.longest, s.w.now-s.since[r])
	if r.Err != nil {
		s.errs++
	}
	if s.stop {
		s.out--
		return
	}
	s.submit(r)
}

// TestPulledPathCostsTwoTimeouts: of two paths one goes silent under load. No request fails, and none takes longer than two timeouts.
func TestPulledPathCostsTwoTimeouts(t *testing.T) {
	w := newWorld(t, 1, disorderly, nil)
	w.plug(ourMAC2)
	w.attach()
	up := func() (n int) {
		for _, p := range w.core.Paths(nil) {
			if p.State == PathUp {
				n++
			}
		}
		return n
	}
	if !w.until(10*time.Second, func() bool { return up() == 2 }) {
		t.Fatalf("paths %+v", w.core.Paths(nil))
	}
	s := &slowest{w: w, since: map[*Request]time.Duration{}, out: 32}
	for i := range s.out {
		r := &Request{Op: []Op{OpRead, OpWrite}[i%2], LBA: uint64(i) * 16, Sectors: 16, Data: make([]byte, 16*512), Done: s}
		s.submit(r)
	}
	w.run(time.Second)
	timeout := time.Duration(0)
	for _, p := range w.core.Paths(nil) {
		timeout = max(timeout, p.Timeout)
	}
	for _, end := range [][2][6]byte{{ourMAC2, targetMAC}, {targetMAC, ourMAC2}} {
		w.net.Block(end[0], end[1])
	}
	w.run(time.Second)
	t.Logf("longest request %v, timeout %v", s.longest, timeout)
	if s.longest > 2*timeout || s.errs > 0 {
		t.Errorf("longest request %v, want at most two timeouts of %v; %d errors", s.longest, timeout, s.errs)
	}
	if up() != 1 {
		t.Errorf("paths %+v", w.core.Paths(nil))
	}
	// Back again, it is used again.
	w.net.Unblock(ourMAC2, targetMAC)
	w.net.Unblock(targetMAC, ourMAC2)
	if !w.until(10*time.Second, func() bool { return up() == 2 }) {
		t.Errorf("after its return: paths %+v", w.core.Paths(nil))
	}
	s.stop = true
	if !w.until(time.Minute, func() bool { return s.out == 0 }) {
		t.Error("requests are not done")
	}
}
