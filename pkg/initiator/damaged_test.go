package initiator

import (
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// TestDamagedOpen: an OPEN that was cut short on its way is refused as an unknown command. That must not make a target of ours a
// foreign one, which would be served without sessions, that is never.
func TestDamagedOpen(t *testing.T) {
	w := newWorld(t, 1, lan, nil)
	damaged := false
	w.net.SetMangler(func(b []byte) []byte {
		if !damaged && aoe.Frame(b).Command() == aoe.CommandOpen {
			damaged = true
			b[aoe.HeaderLen] ^= 1
		}
		return b
	})
	w.attach()
	if !w.core.Info().Session {
		t.Error("no session with a target of ours")
	}
}

// TestDamagedVersion: a request whose version was damaged on its way is no reason to fail.
func TestDamagedVersion(t *testing.T) {
	w := newWorld(t, 2, lan, nil)
	w.attach()
	w.target.refuse = aoe.ErrorVersion
	var c waiter
	r := Request{Op: OpRead, Sectors: 1, Data: make([]byte, aoe.SectorSize), Done: &c}
	w.core.Submit(w.now, &r)
	seen := w.target.seenFrames
	w.until(time.Second, func() bool { return w.target.seenFrames > seen })
	w.target.refuse = aoe.NoError
	w.until(time.Second, func() bool { return c.done > 0 })
	if c.done != 1 || r.Err != nil {
		t.Errorf("done %d with %v", c.done, r.Err)
	}
}

// TestDamagedVersionOfAParkedFrame: what is refused for its version while its path is in doubt waits as all others do.
func TestDamagedVersionOfAParkedFrame(t *testing.T) {
	g := newGarbled(t)
	g.advertise("")
	g.refuse(aoe.ErrorVersion)
	if n := g.core.Stats().Rejected; n > 0 {
		t.Errorf("%d frames were rejected", n)
	}
	g.prove(t)
}
