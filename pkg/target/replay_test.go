package target

import (
	"testing"

	"pgregory.net/rapid"
)

func TestWindow(t *testing.T) {
	const top = 1 << counterBits
	for _, test := range []struct {
		name    string
		before  []uint32 // seen and done
		counter uint32
		want    outcome
		ok      bool
	}{
		{"first", nil, 77, unseen, true},
		{"again", []uint32{77}, 77, doneOK, true},
		{"next", []uint32{77}, 78, unseen, true},
		{"overtaken", []uint32{77, 80}, 78, unseen, true},
		{"overtaken again", []uint32{77, 80}, 77, doneOK, true},
		{"oldest inside", []uint32{replayWindow}, 1, unseen, true},
		{"just outside", []uint32{replayWindow}, 0, unseen, false},
		{"slot reused by a newer one", []uint32{5, 5 + replayWindow}, 5, unseen, false},
		{"slot cleaned", []uint32{5, 6 + replayWindow}, 5 + replayWindow, unseen, true},
		{"slot cleaned by a jump", []uint32{5, 6 + 3*replayWindow}, 5 + 3*replayWindow, unseen, true},
		{"wrapped", []uint32{top - 1}, 0, unseen, true},
		{"wrapped, again", []uint32{top - 1, 0}, top - 1, doneOK, true},
		{"wrapped, too old", []uint32{top - 1, replayWindow}, top - 1, unseen, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w window
			for _, c := range test.before {
				w.look(c)
				w.set(c, doneOK)
			}
			if got, ok := w.look(test.counter); got != test.want || ok != test.ok {
				t.Fatalf("look: %v %v, want %v %v", got, ok, test.want, test.ok)
			}
		})
	}
}

// A window never calls a counter unseen that it was told about, whatever the order.
func TestWindowNeverForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		base := rapid.Uint32Range(0, counterMask).Draw(t, "base")
		done := make(map[uint32]bool)
		at := base
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			at += uint32(rapid.IntRange(0, 40).Draw(t, "ahead"))
			c := (at - uint32(rapid.IntRange(0, 2*replayWindow).Draw(t, "behind"))) & counterMask
			known, ok := w.look(c)
			if done[c] && ok && known != doneOK {
				t.Fatalf("counter %d was done and is %v", c, known)
			}
			if !done[c] && ok && known != unseen {
				t.Fatalf("counter %d is new and is %v", c, known)
			}
			if ok {
				w.set(c, doneOK)
				done[c] = true
			}
		}
	})
}

func TestWindowDoesNotAllocate(t *testing.T) {
	w := new(window)
	c := uint32(0)
	if n := testing.AllocsPerRun(1000, func() {
		c++
		w.look(c & counterMask)
		w.set(c&counterMask, doneOK)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
