package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// readmit takes the node off and lets it in again.
func (m *modelTarget) readmit() {
	m.admission++
	m.epoch, m.incarnation = 0, 0
}

// again has another process take the links over.
func (w *world) again(cfg CoreConfig) {
	w.t.Helper()
	w.transmit()
	if err := w.core.Release(); err != nil && !errors.Is(err, pool.ErrHeld) {
		w.t.Fatal(err)
	}
	core, err := NewCore(w.now, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.core = core
	for i, l := range w.links {
		core.SetLink(w.now, LinkID(i), LinkInfo{Name: l.Name(), MAC: w.macs[i], MTU: l.MTU()})
	}
}

// TestAdmittedAnew: an attachment whose node was taken off and let in again writes nothing any more, whether it had noticed or not; a new one does.
func TestAdmittedAnew(t *testing.T) {
	for _, noticed := range []bool{false, true} {
		w := newWorld(t, 1, lan, nil)
		w.attach()
		if s := w.core.State(); s.Admission != 7 {
			t.Fatalf("admission %d, the target told 7", s.Admission)
		}
		if err := w.write(0, pattern(1, 8)); err != nil {
			t.Fatal(err)
		}
		// A request that the target does not answer while it happens.
		w.target.off = true
		var c waiter
		old := &Request{Op: OpWrite, Sectors: 8, Data: pattern(2, 8), Done: &c}
		w.core.Submit(w.now, old)
		w.run(100 * time.Millisecond)
		w.target.admitted, w.target.epoch, w.target.off = false, 0, !noticed
		w.run(10 * time.Second)
		if noticed != errors.Is(old.Err, ErrNotAdmitted) {
			t.Fatalf("noticed %v: %v", noticed, old.Err)
		}
		w.target.readmit()
		w.target.admitted, w.target.off = true, false
		executed := w.target.executed
		if !w.until(10*time.Second, func() bool { s := w.core.State(); return errors.Is(s.Err, ErrFenced) }) {
			t.Fatalf("state %+v", w.core.State())
		}
		if c.done != 1 || !noticed && !errors.Is(old.Err, ErrFenced) {
			t.Errorf("the old write: %v, completed %d times", old.Err, c.done)
		}
		for _, r := range []*Request{{Op: OpWrite, Sectors: 8, Data: pattern(3, 8)}, {Op: OpRead, Sectors: 8, Data: make([]byte, 4096)}, {Op: OpFlush}} {
			if err := w.do(r); !errors.Is(err, ErrFenced) {
				t.Errorf("%s: %v, want %v", r.Op, err, ErrFenced)
			}
		}
		frames := w.target.seenFrames
		w.run(20 * time.Second)
		if n := w.target.seenFrames - frames; n > 50 {
			t.Errorf("%d frames in 20 s of nothing to do", n)
		}
		if w.target.executed != executed || !errors.Is(w.core.State().Err, ErrFenced) {
			t.Errorf("%d writes after it was let in again; state %+v", w.target.executed-executed, w.core.State())
		}

		// The next process of the initiator knows it from the record; the next attachment begins anew.
		fenced := w.core.State()
		w.again(CoreConfig{Addr: testAddr, Generation: testGeneration, UUID: testUUID, Incarnation: 200, CacheEpoch: fenced.CacheEpoch, Admission: fenced.Admission, Recovered: true})
		if w.until(5*time.Second, w.core.Ready) {
			t.Error("taken over")
		}
		if _, err := w.core.Refusal(); !errors.Is(err, ErrFenced) {
			t.Errorf("refused with %v", err)
		}
		w.again(CoreConfig{Addr: testAddr, Generation: testGeneration, UUID: testUUID, Incarnation: 300})
		w.attach()
		if got, err := w.read(0, 8); err != nil || !bytes.Equal(got, pattern(1, 8)) {
			t.Errorf("after a new attachment: %v", err)
		}
		if s := w.core.State(); s.Admission != 8 {
			t.Errorf("admission %d", s.Admission)
		}
	}
}

// TestDamagedAdmission: an answer that contradicts itself ends nothing.
func TestDamagedAdmission(t *testing.T) {
	w := newWorld(t, 1, lan, nil)
	w.attach()
	for _, admission := range []uint32{0, 7} {
		w.core.enter(w.now)
		w.core.session.fruitless = 0 // else it waits before it asks
		w.core.reopen()
		w.core.leave()
		if w.core.session.ctl.kind != controlOpen {
			t.Fatal("no OPEN is out")
		}
		b := make([]byte, aoe.OpenLen)
		h := aoe.Header{Dst: ourMAC, Src: targetMAC, Response: true, Addr: testAddr, Tag: w.core.session.ctl.tag}
		aoe.PutOpen(b, &h, &aoe.OpenFields{Status: aoe.OpenOtherAdmission, Initiator: testUUID, Admission: admission})
		w.core.Receive(w.now, 0, b)
		w.run(time.Second)
		if s := w.core.State(); s.Err != nil {
			t.Fatalf("after number %d: %+v", admission, s)
		}
	}
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Error(err)
	}
}
