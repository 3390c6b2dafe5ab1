package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// maxPaths bounds what a flood of forged answers can make us remember.
	maxPaths = 16
	// rtoMin is the least time that a retransmission timeout has beyond a round trip, rtoMax the longest; rtoFirst is used before the first measurement.
	rtoMin   = 20 * time.Millisecond
	rtoMax   = 5 * time.Second
	rtoFirst = 250 * time.Millisecond
	// rtoSlow is the least timeout of commands that wait for the disk.
	rtoSlow = 500 * time.Millisecond
	// suspectAfter is how many rounds of timeouts without an answer make a path suspect.
	suspectAfter = 3
	// reproveEvery is how often a path proves the volume's identity, whatever happens.
	reproveEvery = 60 * time.Second
)

// pathPhase is how far a path has come:
//
//	identifying → identified → sizing → up
//	   ↑ silence, advertisement          │
//	   └─────────────────────────────────┘     any → bad: another volume answers
type pathPhase uint8

const (
	pathIdentifying pathPhase = iota
	pathIdentified            // waits for the session
	pathSizing                // a frame of full size is on its way
	pathUp
	pathBad
)

// path is a way to the target: a link and a MAC. RTT, window and sector limit belong to it.
type path struct {
	used  bool
	link  LinkID
	mac   aoe.MAC
	phase pathPhase

	configString string
	claimed      bool // it says that the volume owns this foreign target; asked for anew in every proof
	bufferCount  int  // what the target can hold
	sectorCount  int  // what it takes in a frame
	wanted       int  // sectors that should get through
	limit        int  // sectors that got through
	needSize     bool
	probe        sizeProbe
	ctl          control

	srtt, rttvar time.Duration
	backoff      uint // doublings of the timeout since the last measurement
	cwnd         int  // frames
	ssthresh     int
	acks         int
	inflight     int
	order        order
	cut          time.Duration // when the window was halved last
	uncut        int           // the window before

	heard    time.Duration // last answer
	timeouts int           // since then
	proven   time.Duration // when the identity was proven last
	proveAt  time.Duration // when to ask again
	message  error
}

// rto is the timeout of a frame sent now.
func (p *path) rto() time.Duration {
	t := rtoFirst
	if p.srtt > 0 {
		t = p.srtt + max(4*p.rttvar, rtoMin) // a queue that is always full varies little, until it does
	}
	for range p.backoff {
		if t >= rtoMax {
			break
		}
		t *= 2
	}
	return min(t, rtoMax)
}

// measure takes a round trip of a frame that was sent once (Karn), with the gains of Jacobson and Karels.
func (p *path) measure(rtt time.Duration) {
	rtt = max(rtt, time.Microsecond)
	p.backoff = 0
	if p.srtt == 0 {
		p.srtt, p.rttvar = rtt, rtt/2
		return
	}
	diff := rtt - p.srtt
	p.srtt += diff / 8
	if diff < 0 {
		diff = -diff
	}
	p.rttvar += (diff - p.rttvar) / 4
}

// ceiling is the most frames the path may have outstanding.
func (p *path) ceiling() int { return max(1, p.bufferCount) }

// resetWindow begins slow start.
func (p *path) resetWindow() {
	p.ssthresh = p.ceiling()
	p.cwnd = max(1, p.ceiling()/2)
	p.acks = 0
}

// grow opens the window after an answer, if it was the window that held back.
func (p *path) grow() {
	if p.cwnd >= p.ceiling() {
		p.cwnd = p.ceiling()
		return
	}
	if p.inflight+1 < p.cwnd {
		return
	}
	if p.cwnd < p.ssthresh {
		p.cwnd++
		return
	}
	if p.acks++; p.acks >= p.cwnd {
		p.acks = 0
		p.cwnd++
	}
}

// shrink halves the window once per round of losses: frames sent before the last halving tell nothing new. It says whether it did.
func (p *path) shrink(now, sentAt time.Duration) bool {
	if sentAt < p.cut {
		return false
	}
	p.cut, p.uncut = now, p.cwnd
	p.cwnd = max(1, p.cwnd/2)
	p.ssthresh = p.cwnd
	p.acks = 0
	if p.backoff < 8 {
		p.backoff++
	}
	return true
}

// late takes the news that a frame, answered rtt after it was first sent, was not lost: it was sent again too early. The
// halving is undone, and the round trip counts: Karn's rule would keep an estimate that has become too small for ever.
func (p *path) late(rtt time.Duration) {
	p.measure(rtt)
	p.cwnd = min(max(p.cwnd, p.uncut), p.ceiling())
	p.ssthresh = max(p.ssthresh, p.cwnd)
}

// heardFrom notes a valid answer.
func (p *path) heardFrom(now time.Duration) {
	p.heard = now
	p.timeouts = 0
}

// silent says whether the identity has to be proven again before data go out.
func (p *path) silent(now time.Duration) bool { return now-p.heard > rtoMax }

// findPath returns the path, or nil.
func (c *Core) findPath(link LinkID, mac aoe.MAC) *path {
	for i := range c.paths {
		if p := &c.paths[i]; p.used && p.link == link && p.mac == mac {
			return p
		}
	}
	return nil
}

// addPath makes room for a path, at the cost of one that serves nothing; nil if all do.
func (c *Core) addPath(link LinkID, mac aoe.MAC) *path {
	var victim *path
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used {
			victim = p
			break
		}
		if c.useless(p) && (victim == nil || p.heard < victim.heard) {
			victim = p
		}
	}
	if victim == nil {
		return nil
	}
	c.dropPath(victim)
	*victim = path{used: true, link: link, mac: mac, heard: c.now}
	return victim
}

// useless says whether a path may make room for another: it leads elsewhere, never proved anything, or has been silent for long.
func (c *Core) useless(p *path) bool {
	return p.phase == pathBad || p.proven == 0 || p.phase == pathIdentifying && c.now-p.heard > reproveEvery
}

// dropPath forgets a path; its frames wait for another one.
func (c *Core) dropPath(p *path) {
	if !p.used {
		return
	}
	c.park(p)
	for i := range c.table.entries {
		if e := &c.table.entries[i]; e.req != nil && e.path == p {
			e.path = nil
		}
	}
	c.endControl(&p.ctl)
	if c.session.ctl.path == p {
		c.endControl(&c.session.ctl)
	}
	*p = path{}
	c.changed = true
}

// park makes a path's frames wait for a path.
func (c *Core) park(p *path) {
	for i := range c.table.entries {
		if e := &c.table.entries[i]; e.req != nil && e.path == p && !e.parked {
			e.parked, e.due = true, never
			c.parked++
			p.discount(e)
		}
	}
}

// resize computes what should fit, after a change of the link's MTU or of the target's limits.
func (c *Core) resize(p *path) {
	wanted := min(aoe.MaxSectors(c.links[p.link].MTU), p.sectorCount)
	if c.data != nil {
		wanted = min(wanted, (c.frameSize-aoe.ATALen)/aoe.SectorSize)
	}
	p.wanted = max(1, wanted)
	p.limit = min(p.limit, p.wanted)
}

// best is the up path with the most room, nil if there is none; a path that was silent for long is asked for its identity first.
func (c *Core) best() *path {
	var found *path
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used || p.phase != pathUp || p.inflight >= p.cwnd {
			continue
		}
		if p.silent(c.now) {
			c.verify(p, false)
			continue
		}
		if found == nil || p.cwnd-p.inflight > found.cwnd-found.inflight {
			found = p
		}
	}
	return found
}

// anyUp says whether a path can carry data.
func (c *Core) anyUp() bool {
	for i := range c.paths {
		if c.paths[i].used && c.paths[i].phase == pathUp {
			return true
		}
	}
	return false
}
