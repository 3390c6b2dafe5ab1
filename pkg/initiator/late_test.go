package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// keepWrites has the network swallow writes longer than a length, and returns where they are kept.
func (w *world) keepWrites(longer int) *[][]byte {
	kept := new([][]byte)
	w.onWrites(func(f aoe.Frame) bool {
		if len(f) <= longer {
			return true
		}
		*kept = append(*kept, bytes.Clone(f))
		return false
	})
	return kept
}

// deliver has the target get late what the network kept.
func (w *world) deliver(kept [][]byte) {
	w.t.Helper()
	if len(kept) == 0 {
		w.t.Fatal("nothing was kept")
	}
	for _, b := range kept {
		w.target.serve(b)
	}
	w.run(100 * time.Millisecond)
}

// TestLateFrameAfterRefit: the long frame that did not get through arrives when its short successors and a newer write are done.
func TestLateFrameAfterRefit(t *testing.T) {
	w := newWorld(t, 1, lan, nil)
	w.attach()
	kept := w.keepWrites(1500)
	small := lan
	small.PathMTU = 1500
	w.net.SetProfile(small)
	if err := w.write(0, pattern(1, 16)); err != nil {
		t.Fatal(err)
	}
	newer := pattern(2, 16)
	if err := w.write(0, newer); err != nil {
		t.Fatal(err)
	}
	w.deliver(*kept)
	if !bytes.HasPrefix(w.target.disk, newer) {
		t.Error("the late frame overwrote newer data")
	}
}

// TestLateFrameAfterFail: the same with a write that was given up.
func TestLateFrameAfterFail(t *testing.T) {
	w := newWorld(t, 2, lan, nil)
	w.attach()
	kept := w.keepWrites(0)
	var c waiter
	r := Request{Op: OpWrite, Sectors: 64, Data: pattern(1, 64), Done: &c}
	w.core.Submit(w.now, &r)
	w.run(time.Millisecond)
	w.core.Fail(w.now, ErrIO)
	if c.done != 1 || !errors.Is(r.Err, ErrIO) {
		t.Fatalf("done %d with %v", c.done, r.Err)
	}
	w.net.SetTap(nil)
	newer := pattern(2, 64)
	if err := w.write(0, newer); err != nil {
		t.Fatal(err)
	}
	w.deliver(*kept)
	if !bytes.HasPrefix(w.target.disk, newer) {
		t.Error("the late frame overwrote newer data")
	}
}

// TestForeignWriteWaitsForTheOldOne: at a target that cannot tell copies apart a write waits for as long as a copy of a retransmitted
// one may live, and no other request waits with it.
func TestForeignWriteWaitsForTheOldOne(t *testing.T) {
	w := newWorld(t, 3, lan, func(c *CoreConfig) { c.Generation = "" })
	w.target.asVblade()
	w.attach()
	lost := false
	w.onWrites(func(aoe.Frame) bool {
		first := !lost
		lost = true
		return !first
	})
	if err := w.write(8, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	before := w.now
	var c waiter
	over := Request{Op: OpWrite, LBA: 15, Sectors: 8, Data: pattern(2, 8), Done: &c}
	w.core.Submit(w.now, &over)
	if err := w.write(100, pattern(3, 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read(8, 8); err != nil || c.done != 0 || w.now-before > 100*time.Millisecond {
		t.Errorf("others took %v (%v), the overlapping write is done: %v", w.now-before, err, c.done != 0)
	}
	w.until(time.Minute, func() bool { return c.done == 1 })
	if took := w.now - before; took < duplicateLifetime || took > duplicateLifetime+100*time.Millisecond {
		t.Errorf("the overlapping write took %v", took)
	}
	if w.core.Stats().Held != 1 {
		t.Errorf("stats %+v", w.core.Stats())
	}
}

// TestRecoveredForeignWrites wait until what an earlier process sent cannot arrive any more; reads do not.
func TestRecoveredForeignWrites(t *testing.T) {
	w := newWorld(t, 4, lan, func(c *CoreConfig) { c.Generation, c.Recovered = "", true })
	w.target.asVblade()
	w.attach()
	if _, err := w.read(0, 8); err != nil || w.now > duplicateLifetime/2 {
		t.Errorf("a read took until %v: %v", w.now, err)
	}
	if err := w.write(0, pattern(1, 8)); err != nil || w.now < duplicateLifetime {
		t.Errorf("a write was done at %v: %v", w.now, err)
	}
}

// TestForeignDetachOutlivesCopies: the next attachment knows nothing of the writes that were sent twice, so this one ends when their copies do.
func TestForeignDetachOutlivesCopies(t *testing.T) {
	w := newWorld(t, 6, lan, func(c *CoreConfig) { c.Generation = "" })
	w.target.asVblade()
	w.attach()
	lost := false
	w.onWrites(func(aoe.Frame) bool {
		first := !lost
		lost = true
		return !first
	})
	if err := w.write(8, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	before := w.now
	w.core.Close(w.now)
	if w.core.Closed(w.now) {
		t.Error("closed at once")
	}
	w.run(duplicateLifetime)
	if !w.core.Closed(w.now) {
		t.Errorf("not closed after %v", w.now-before)
	}
}

// TestAnswerOverTheOtherPath: only the path that carried the request may answer.
func TestAnswerOverTheOtherPath(t *testing.T) {
	w := newWorld(t, 5, lan, nil)
	w.plug(ourMAC2)
	w.attach()
	w.until(time.Second, func() bool { return len(w.core.Paths(nil)) == 2 && w.core.Paths(nil)[1].State == PathUp })
	kept := w.keepWrites(0)
	var c waiter
	r := Request{Op: OpWrite, Sectors: 8, Data: pattern(1, 8), Done: &c}
	w.core.Submit(w.now, &r)
	w.transmit()
	request := aoe.Frame((*kept)[0])
	answer := make([]byte, aoe.MinFrameLen)
	aoe.PutATAReply(answer, request, targetMAC, testAddr, aoe.StatusDRDY, 0)
	carried, other, otherMAC := LinkID(0), LinkID(1), ourMAC2
	if request.Src() == ourMAC2 {
		carried, other, otherMAC = 1, 0, ourMAC
	}
	w.core.Receive(w.now, other, answer)
	aoe.Frame(answer).SetDst(otherMAC)
	w.core.Receive(w.now, other, answer)
	if c.done != 0 {
		t.Error("an answer over the other path completed the request")
	}
	aoe.Frame(answer).SetDst(request.Src())
	w.core.Receive(w.now, carried, answer)
	if c.done != 1 || r.Err != nil {
		t.Errorf("the right answer: done %d, %v", c.done, r.Err)
	}
	w.net.SetTap(nil)
}
