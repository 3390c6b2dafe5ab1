package initiator

import (
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// TestClaimIsTheIdentityOfAForeignTarget: it has a serial number of its own. Whenever the identity is to be proved the claim is asked
// for, too: a target that lost it, or that another volume owns, gets nothing until it has it back.
func TestClaimIsTheIdentityOfAForeignTarget(t *testing.T) {
	claim := aoe.Claim{Generation: testGeneration, Owner: "team/data"}.String()
	for name, until := range map[string]func(w *world){
		"silence": func(w *world) { w.run(6 * time.Second) },
		"advertisement": func(w *world) {
			w.target.advertise()
			w.run(200 * time.Millisecond)
		},
		"a minute": func(w *world) {
			for range 70 {
				if _, err := w.read(0, 1); err != nil {
					w.t.Fatal(err)
				}
				w.run(time.Second)
				if !w.core.anyUp() {
					return
				}
			}
		},
	} {
		for _, other := range []string{"", "somebody's", aoe.Claim{Generation: "qrstuvwxyz234567", Owner: "team/data"}.String()} {
			t.Run(name+", then "+other, func(t *testing.T) {
				w := newWorld(t, 7, lan, nil)
				w.target.asVblade()
				w.target.config = claim
				w.attach()
				if err := w.write(0, pattern(1, 8)); err != nil {
					t.Fatal(err)
				}
				w.target.config = other
				until(w)
				var c, reader waiter
				look := Request{Op: OpRead, Sectors: 8, Data: make([]byte, 8*aoe.SectorSize), Done: &reader}
				w.core.Submit(w.now, &look)
				r := Request{Op: OpWrite, Sectors: 8, Data: pattern(2, 8), Done: &c}
				executed := w.target.executed
				w.core.Submit(w.now, &r)
				w.run(5 * time.Second)
				if w.target.executed != executed || c.done != 0 || reader.done != 0 {
					t.Fatalf("a target with the config string %q was used: %v, %v", other, r.Err, look.Err)
				}
				w.target.config = claim
				if !w.until(20*time.Second, func() bool { return c.done == 1 && reader.done == 1 }) || r.Err != nil || look.Err != nil {
					t.Errorf("claimed again: done %d, %v", c.done, r.Err)
				}
			})
		}
	}
}

// TestNoClaimNoAttachment: without the claim, or with another's, a foreign target is not the volume meant.
func TestNoClaimNoAttachment(t *testing.T) {
	for _, config := range []string{"", "aoe-csi/1 qrstuvwxyz234567 team/data", "aoe-csi/1 " + testGeneration + "x y"} {
		w := newWorld(t, 8, lan, nil)
		w.target.asVblade()
		w.target.config = config
		w.run(2 * time.Second)
		if w.core.ready || !errors.Is(w.core.refusal, ErrIdentity) {
			t.Errorf("config string %q: ready %v, %v", config, w.core.ready, w.core.refusal)
		}
	}
}
