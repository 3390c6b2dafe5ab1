package initiator

import (
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// refill submits every request again as soon as it is done, until it is told to stop.
type refill struct {
	w         *world
	stop      bool
	done, out int
}

func (f *refill) Complete(r *Request) {
	f.done++
	f.out--
	if r.Err != nil {
		f.w.t.Errorf("%s at %d: %v", r.Op, r.LBA, r.Err)
	}
	if !f.stop {
		f.out++
		f.w.core.Submit(f.w.now, r)
	}
}

// stream keeps a number of reads outstanding for a span of virtual time and says how many were done.
func (w *world) stream(depth int, span time.Duration) int {
	w.t.Helper()
	f := &refill{w: w, out: depth}
	for i := range depth {
		w.core.Submit(w.now, &Request{Op: OpRead, LBA: uint64(i) * 16, Sectors: 16, Data: make([]byte, 16*512), Done: f})
	}
	w.run(span)
	f.stop = true
	if !w.until(time.Minute, func() bool { return f.out == 0 }) {
		w.t.Fatalf("%d reads are not done after a minute", f.out)
	}
	return f.done
}

// TestSlowIsNotLost: when the network becomes slower than the retransmission timeout but loses nothing, the timeout follows, and the
// window comes back.
func TestSlowIsNotLost(t *testing.T) {
	w := newWorld(t, 1, linktest.Profile{Delay: 100 * time.Microsecond}, nil)
	w.attach()
	w.stream(64, time.Second)
	w.net.SetProfile(linktest.Profile{Delay: 100 * time.Millisecond, Jitter: 150 * time.Millisecond})
	w.stream(64, 5*time.Second)
	before := w.core.Stats()
	done := w.stream(64, 20*time.Second)
	after := w.core.Stats()
	if again := after.Retransmits - before.Retransmits; again*20 > after.FramesSent-before.FramesSent {
		t.Errorf("%d of %d frames were sent again though none was lost", again, after.FramesSent-before.FramesSent)
	}
	if p := w.core.Paths(nil)[0]; p.Window < 16 {
		t.Errorf("window is %d frames, round trip %v", p.Window, p.RTT)
	}
	t.Logf("%d reads in 20 s; %+v", done, w.core.Paths(nil)[0])
}
