package linktest

import (
	"math/rand/v2"
	"time"
)

// Profile is how the network treats frames. The zero value delivers every frame at once and in order.
type Profile struct {
	// Loss, Duplicate and Reorder are probabilities for each frame and each receiver. A duplicate has a delay of its own; a
	// reordered frame arrives ReorderBy later than it would.
	Loss, Duplicate, Reorder float64
	// Delay and up to Jitter more pass before a frame arrives. Jitter reorders, too.
	Delay, Jitter time.Duration
	// ReorderBy is 0 for ten times Delay plus Jitter, at least 1 ms.
	ReorderBy time.Duration
	// ReleaseDelay is how long the network holds a sent frame; 0 means that it copies and holds none.
	ReleaseDelay time.Duration
	// MTU is 0 for 9000. Longer frames are refused as a packet link does (link.ErrTooLong).
	MTU int
	// PathMTU is 0 for MTU; longer frames are taken and lost, as a switch in between does.
	PathMTU int
	// Queue is how many frames a link keeps for its receiver before it drops; 0 for 4096.
	Queue int
}

// withDefaults fills in what 0 stands for.
func (p Profile) withDefaults() Profile {
	if p.MTU == 0 {
		p.MTU = 9000
	}
	if p.PathMTU == 0 {
		p.PathMTU = p.MTU
	}
	if p.Queue == 0 {
		p.Queue = 4096
	}
	if p.ReorderBy == 0 {
		p.ReorderBy = max(time.Millisecond, 10*(p.Delay+p.Jitter))
	}
	return p
}

// fate is what the dice said for one frame on its way to one receiver.
type fate struct {
	lost, twice   bool
	first, second time.Duration
}

// roll always rolls the same number of dice, so that changing one probability leaves the others' outcomes as they were.
func (p Profile) roll(dice *rand.Rand) fate {
	lost, twice, late := dice.Float64(), dice.Float64(), dice.Float64()
	jitter, again := dice.Float64(), dice.Float64()
	f := fate{
		lost: lost < p.Loss, twice: twice < p.Duplicate,
		first:  p.Delay + time.Duration(jitter*float64(p.Jitter)),
		second: p.Delay + time.Duration(again*float64(p.Jitter+p.ReorderBy)),
	}
	if late < p.Reorder {
		f.first += p.ReorderBy
	}
	return f
}
