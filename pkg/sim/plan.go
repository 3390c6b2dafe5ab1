package sim

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// plan is what a seed makes of a run: not everything at once, since too much trouble lets nothing happen.
type plan struct {
	nodes, links, volumes int
	openVolumes           bool // access: open, so that the initiators have no sessions
	threads               int  // per device
	think                 time.Duration
	poolMax               int
	duration              time.Duration
	disk                  time.Duration // the longest half of an access
	uncached              float64       // how much of the I/O cannot be done without waiting for the disk
	profile               linktest.Profile
	faults                faultList
	preempt               float64 // how often a thread of the target that could go on has to wait for a processor
	overlap               bool    // reads of what is being written
	mangled               float64
}

const sectorsPerVolume = 64

func (s *Sim) makePlan() plan {
	d := s.dice
	p := plan{
		nodes: 1 + d.IntN(2), links: 1 + d.IntN(2), volumes: 1 + d.IntN(2), openVolumes: d.IntN(4) == 0,
		threads: 1 + d.IntN(8), think: time.Duration(1+d.IntN(100)) * time.Millisecond,
		poolMax: 2 + d.IntN(40), duration: time.Duration(2+d.IntN(8)) * time.Second,
		disk: time.Duration(d.IntN(3)*d.IntN(2000)) * time.Microsecond, uncached: []float64{0.3, 0.6, 1}[d.IntN(3)], overlap: d.IntN(2) == 0,
	}
	if d.IntN(3) == 0 {
		p.preempt = float64(1+d.IntN(30)) / 100
	}
	if d.IntN(3) == 0 {
		p.mangled = float64(d.IntN(30)) / 1000
	}
	p.profile = s.makeProfile(p.openVolumes)
	if p.openVolumes && d.IntN(3) == 0 {
		p.duration += 2 * fenceless
		p.think *= 3
	}
	for _, f := range faults {
		if d.IntN(3) == 0 && (!f.managed || !p.openVolumes) {
			p.faults = append(p.faults, f)
		}
	}
	return p
}

// makeProfile is a network; what a network duplicates by itself cannot be told from a request by a target without sessions.
func (s *Sim) makeProfile(open bool) linktest.Profile {
	d := s.dice
	p := linktest.Profile{
		Delay: time.Duration(20+d.IntN(500)) * time.Microsecond, Jitter: time.Duration(d.IntN(1000)) * time.Microsecond,
		MTU: []int{1500, 4200, 9000}[d.IntN(3)],
	}
	if d.IntN(2) == 0 {
		p.Loss = float64(d.IntN(100)) / 1000
	}
	if d.IntN(2) == 0 && !open {
		p.Duplicate = float64(d.IntN(150)) / 1000
	}
	if d.IntN(2) == 0 {
		p.Reorder, p.ReorderBy = float64(d.IntN(200))/1000, time.Duration(1+d.IntN(400))*time.Millisecond
	}
	if d.IntN(2) == 0 {
		p.ReleaseDelay = time.Duration(1+d.IntN(40_000)) * time.Microsecond
	}
	return p
}

// latency is a half of a disk access.
func (s *Sim) latency() time.Duration {
	if s.plan.disk == 0 {
		return 0
	}
	d := time.Duration(s.dice.Int64N(int64(s.plan.disk)))
	if s.dice.IntN(200) == 0 {
		d += time.Duration(s.dice.IntN(300)) * time.Millisecond
	}
	return d
}

// absence is how long a thread waits for a processor.
func (s *Sim) absence() time.Duration {
	if s.plan.preempt == 0 || s.dice.Float64() >= s.plan.preempt {
		return 0
	}
	if s.dice.IntN(20) == 0 {
		return time.Duration(s.dice.Int64N(int64(300 * time.Millisecond)))
	}
	return time.Duration(s.dice.Int64N(int64(2 * time.Millisecond)))
}

// mangle changes what arrives, on its way: it cuts frames short, and flips bits that receivers can notice. Bits of counter, LBA and
// data are Ethernet's check sum's business; nothing in AoE protects them.
func (s *Sim) mangle(b []byte) []byte {
	if s.healed || s.plan.mangled == 0 || s.dice.Float64() >= s.plan.mangled {
		return b
	}
	if s.dice.IntN(2) == 0 {
		return b[:s.dice.IntN(len(b))]
	}
	at, bit := s.dice.IntN(len(b)), s.dice.IntN(8)
	switch at %= 21; {
	case at == 14 && bit == 2, at == 15 && b[14]&4 != 0, at == 19, at >= len(b): // the error flag and its code, the command
	default:
		b[at] ^= 1 << bit
	}
	return b
}
