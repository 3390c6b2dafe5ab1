package initiator

import (
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// TestProbeKeepsTheWindow: when the oldest outstanding frame is a whole anti-replay window behind, a probe takes no counter: the target
// would never execute that frame again, and everything would wait for it.
func TestProbeKeepsTheWindow(t *testing.T) {
	w := newWorld(t, 1, linktest.Profile{}, nil)
	w.attach()
	var c waiter
	w.core.Submit(w.now, &Request{Op: OpWrite, LBA: 8, Sectors: 1, Data: pattern(1, 1), Done: &c})
	w.core.table.next += w.core.table.window - 1 // as many newer ones were answered
	if w.core.table.room() {
		t.Fatal("there is room: the test tests nothing")
	}
	before := w.core.table.next
	for i := range w.core.paths {
		if p := &w.core.paths[i]; p.used {
			w.core.enter(w.now)
			w.core.startSize(p)
			w.core.leave()
		}
	}
	if w.core.table.next != before {
		t.Errorf("a probe took counter %d, the oldest is %d", before, w.core.table.oldest)
	}
}
