package initiator

import (
	"bytes"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// disorderly has a round trip of a millisecond at most, and answers in any order.
var disorderly = linktest.Profile{Delay: 100 * time.Microsecond, Jitter: 300 * time.Microsecond}

// writes is a load, each submitted again from its completion.
func (w *world) writes(depth int) *refill {
	f := &refill{w: w, out: depth}
	for i := range depth {
		w.core.Submit(w.now, &Request{Op: OpWrite, LBA: uint64(i) * 8, Sectors: 8, Data: pattern(byte(i), 8), Done: f})
	}
	return f
}

// finish lets a load end.
func (f *refill) finish() {
	f.w.t.Helper()
	f.stop = true
	if !f.w.until(time.Minute, func() bool { return f.out == 0 }) {
		f.w.t.Fatalf("%d requests are not done after a minute", f.out)
	}
}

// loseOne loses the next data frame and returns when it was sent, and where its copies are noted.
func (w *world) loseOne() (copies *[][]byte) {
	copies = new([][]byte)
	w.net.SetTap(func(b []byte) bool {
		f, err := aoe.ParseFrame(b)
		if err != nil || f.IsResponse() || f.Command() != aoe.CommandATA || aoe.TagEpoch(f.Tag()) == 0 && w.target.managed {
			return true
		}
		if len(*copies) == 0 {
			*copies = append(*copies, bytes.Clone(b))
			return false
		}
		if lost := aoe.Frame((*copies)[0]); lost.Tag() == f.Tag() {
			*copies = append(*copies, bytes.Clone(b))
		}
		return true
	})
	return copies
}

// TestOvertakenIsSentAgain: a lost frame is repeated as soon as later ones have been answered, with its tag and its bytes, long before its timeout.
func TestOvertakenIsSentAgain(t *testing.T) {
	w := newWorld(t, 1, disorderly, nil)
	w.attach()
	f := w.writes(8)
	w.run(100 * time.Millisecond)
	before := w.now
	copies := w.loseOne()
	if !w.until(time.Second, func() bool { return len(*copies) == 2 }) {
		t.Fatal("a lost frame was not sent again")
	}
	if took := w.now - before; took > rtoMin/2 {
		t.Errorf("sent again after %v", took)
	}
	if !bytes.Equal((*copies)[0], (*copies)[1]) {
		t.Error("the copy has other bytes")
	}
	f.finish()
	if s := w.core.Stats(); s.Retransmits != 1 {
		t.Errorf("%d frames were sent again, want 1", s.Retransmits)
	}
}

// TestLostCopyIsSentAgain: so is a copy that was lost itself.
func TestLostCopyIsSentAgain(t *testing.T) {
	w := newWorld(t, 1, disorderly, nil)
	w.attach()
	f := w.writes(8)
	w.run(100 * time.Millisecond)
	tag, sent := uint32(0), 0
	before := w.now
	w.net.SetTap(func(b []byte) bool {
		f, err := aoe.ParseFrame(b)
		if err != nil || f.IsResponse() || f.Command() != aoe.CommandATA || aoe.TagEpoch(f.Tag()) == 0 {
			return true
		}
		if tag == 0 {
			tag = f.Tag()
		}
		if f.Tag() == tag {
			sent++
		}
		return f.Tag() != tag || sent > 2
	})
	if !w.until(time.Second, func() bool { return sent == 3 }) {
		t.Fatalf("sent %d times", sent)
	}
	if took := w.now - before; took > rtoMin/2 {
		t.Errorf("sent a third time after %v", took)
	}
	f.finish()
}

// TestForeignWriteWaitsForItsTimeout: there a copy too many would keep later writes from the place for a second.
func TestForeignWriteWaitsForItsTimeout(t *testing.T) {
	w := newWorld(t, 1, disorderly, func(cfg *CoreConfig) { cfg.Generation = "" })
	w.target.asVblade()
	w.attach()
	f := w.writes(8)
	w.run(100 * time.Millisecond)
	before := w.now
	copies := w.loseOne()
	if !w.until(time.Second, func() bool { return len(*copies) == 2 }) {
		t.Fatal("a lost frame was not sent again")
	}
	if took := w.now - before; took < rtoMin {
		t.Errorf("sent again after %v", took)
	}
	f.finish()
}

// TestDisorderIsNotLoss: some answers take many round trips, as from a disk beside a cache. The path learns to wait for them.
func TestDisorderIsNotLoss(t *testing.T) {
	w := newWorld(t, 1, linktest.Profile{Delay: 100 * time.Microsecond, Reorder: 0.05, ReorderBy: 5 * time.Millisecond}, nil)
	w.attach()
	w.stream(16, time.Second)
	before := w.core.Stats()
	w.stream(16, 10*time.Second)
	after := w.core.Stats()
	sent, again := after.FramesSent-before.FramesSent, after.Retransmits-before.Retransmits
	t.Logf("%d of %d frames were sent again", again, sent)
	if again*200 > sent {
		t.Errorf("%d of %d frames were sent again though none was lost", again, sent)
	}
}

// TestLossCostsLittle: with one frame in a hundred lost in each direction, most of the throughput is left.
func TestLossCostsLittle(t *testing.T) {
	done := map[float64]int{}
	for _, loss := range []float64{0, 0.01} {
		profile := disorderly
		profile.Loss = loss
		w := newWorld(t, 1, disorderly, nil)
		w.target.buffers = 64
		w.attach()
		w.net.SetProfile(profile)
		w.stream(32, time.Second)
		done[loss] = w.stream(32, 5*time.Second)
		t.Logf("loss %v: %d reads, %+v", loss, done[loss], w.core.Paths(nil)[0])
	}
	if done[0.01]*100 < done[0]*85 {
		t.Errorf("%d reads with loss, %d without", done[0.01], done[0])
	}
}
