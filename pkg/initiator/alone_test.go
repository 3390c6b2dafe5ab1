package initiator

import (
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// TestKnownMAC: a target that is where it was seen is found without a broadcast, one that has moved with one, soon.
func TestKnownMAC(t *testing.T) {
	elsewhere := aoe.MAC{2, 9, 9, 9, 9, 9}
	for _, tt := range []struct {
		name  string
		macs  []aoe.MAC
		most  int // broadcasts
		least int
		span  time.Duration
	}{
		{"known", []aoe.MAC{targetMAC}, 0, 0, queryFirst},
		{"one of two", []aoe.MAC{elsewhere, targetMAC}, 0, 0, queryFirst},
		{"moved", []aoe.MAC{elsewhere}, 1, 1, time.Second},
		{"unknown", nil, 1, 1, queryFirst},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 1, lan, func(c *CoreConfig) { c.MACs = tt.macs })
			if w.attach(); w.now > tt.span {
				t.Errorf("attached after %v", w.now)
			}
			if w.broadcasts > tt.most || w.broadcasts < tt.least {
				t.Errorf("%d broadcasts, want %d to %d", w.broadcasts, tt.least, tt.most)
			}
		})
	}
}
