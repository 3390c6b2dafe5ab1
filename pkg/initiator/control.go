package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// controlFrameSize holds everything but data.
	controlFrameSize = 128
	// controlMost is the longest time between two tries of a control exchange.
	controlMost = time.Second
	// hurryAfter keeps a flood of answers from making us send as much.
	hurryAfter = 20 * time.Millisecond
	// advertisementsEvery is how often an advertisement may stop a path for a proof.
	advertisementsEvery = 100 * time.Millisecond
)

// Queries: how soon after the first, how often while no path is up, and how often to look for more paths.
const (
	queryFirst = 100 * time.Millisecond
	queryMost  = time.Second
	queryIdle  = 60 * time.Second
	// queryAlone is how often those who were named are asked before everybody is.
	queryAlone = 2
)

// controlKind is what a control exchange asks.
type controlKind uint8

const (
	controlNone controlKind = iota
	controlClaim
	controlIdentify
	controlSize
	controlOpen
	controlClose
)

// control is an exchange of one request and one answer, beside the data: a path has at most one, the session another.
type control struct {
	kind     controlKind
	path     *path
	tag      uint32
	frame    *pool.Frame
	sentAt   time.Duration
	due      time.Duration
	interval time.Duration
	tries    int
}

// query is the broadcast that finds paths.
type query struct {
	at       time.Duration
	alone    int // how often only those who were named were asked
	interval time.Duration
	number   uint32
}

// controlTag is a tag outside every session. Data frames of a target without sessions have the other half of the counters.
func (c *Core) controlTag() uint32 {
	c.query.number = (c.query.number + 1) % (aoe.TagCounters - foreignCounters)
	return aoe.MakeTag(c.cfg.Shard, 0, foreignCounters+c.query.number)
}

// startControl sends the frame that the caller has filled, whose owner's hold it takes.
func (c *Core) startControl(k *control, kind controlKind, p *path, tag uint32, f *pool.Frame) {
	*k = control{kind: kind, path: p, tag: tag, frame: f, interval: max(p.rto(), rtoMin)}
	c.sendControl(k)
}

// sendControl sends the exchange's frame, for the first time or again.
func (c *Core) sendControl(k *control) {
	k.tries++
	k.frame.Hold()
	c.out = append(c.out, Transmit{Link: k.path.link, Frame: k.frame})
	c.stats.FramesSent++
	k.sentAt = c.now
	k.due = c.now + k.interval
	k.interval = min(2*k.interval, controlMost)
	c.wake(k.due)
}

// endControl forgets an exchange; a late answer matches nothing.
func (c *Core) endControl(k *control) {
	if k.frame != nil {
		k.frame.Release()
	}
	*k = control{}
}

// hurry asks again at once, since the target has just shown itself.
func (c *Core) hurry(p *path) {
	k := &p.ctl
	if k.kind == controlNone || c.now-k.sentAt < hurryAfter {
		return
	}
	k.interval = max(p.rto(), rtoMin)
	c.sendControl(k)
}

// tickQuery asks who the target is when it is time: at first those at whose addresses it was seen, if that is known, then everybody.
func (c *Core) tickQuery() {
	q := &c.query
	if c.closed {
		return
	}
	if q.at > c.now {
		c.wake(q.at)
		return
	}
	everybody := len(c.cfg.MACs) == 0 || q.alone >= queryAlone || c.anyUp()
	for id := range c.links {
		if c.usable(LinkID(id)) {
			c.askOn(LinkID(id), everybody)
		}
	}
	if !everybody {
		q.alone++
	}
	if c.anyUp() {
		q.interval = queryFirst
		q.at = c.now + queryIdle
	} else {
		q.at = c.now + q.interval
		q.interval = min(2*q.interval, queryMost)
	}
	c.wake(q.at)
}

// askOn asks on a link. A socket leads to one target and to no wire.
func (c *Core) askOn(id LinkID, everybody bool) {
	if everybody || c.links[id].Local {
		c.sendQuery(id, aoe.Broadcast)
		return
	}
	for _, mac := range c.cfg.MACs {
		c.sendQuery(id, mac)
	}
}

// sendQuery asks on a link who the target is; nothing waits for the answer.
func (c *Core) sendQuery(id LinkID, to aoe.MAC) {
	f := c.control.Get()
	if f == nil {
		return
	}
	h := aoe.Header{Dst: to, Src: c.links[id].MAC, Addr: c.cfg.Addr, Tag: c.controlTag()}
	f.SetLen(aoe.Pad(f.Buf(), aoe.PutConfig(f.Buf(), &h, &aoe.ConfigFields{})))
	c.out = append(c.out, Transmit{Link: id, Frame: f})
	c.stats.FramesSent++
}

// querySoon looks for paths, since there may be none.
func (c *Core) querySoon() {
	if c.anyUp() {
		return
	}
	c.query.interval = queryFirst
	c.query.at = min(c.query.at, c.now+queryFirst)
	c.wake(c.query.at)
}

// tickPaths repeats what was not answered and has each path prove itself now and then.
func (c *Core) tickPaths() {
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used {
			continue
		}
		if p.phase == pathUp && !c.closed {
			if c.now >= p.proveAt {
				c.prove(p)
			} else {
				c.wake(p.proveAt)
			}
		}
		if p.ctl.kind == controlNone {
			switch p.phase {
			case pathIdentifying: // there was no buffer
				c.sendProof(p)
			case pathSizing:
				c.sendSize(p)
			}
		}
		if p.ctl.kind == controlNone {
			continue
		}
		if p.ctl.due > c.now {
			c.wake(p.ctl.due)
			continue
		}
		c.controlTimeout(p)
	}
}

// controlTimeout repeats a path's exchange or draws a conclusion from the silence.
func (c *Core) controlTimeout(p *path) {
	k := &p.ctl
	switch {
	case k.kind == controlSize && k.tries >= sizeTries:
		c.endControl(k)
		c.sizeLost(p)
	case p.phase == pathUp && (k.kind == controlIdentify || k.kind == controlClaim) && k.tries >= suspectAfter:
		c.verify(p, true)
	case p.proven == 0 && k.tries >= forgetAfter, c.now-p.heard > forgetSilent && c.anyUp():
		c.dropPath(p)
	default:
		c.sendControl(k)
	}
}

const (
	// forgetAfter is how many tries a path has that never proved anything.
	forgetAfter = 20
	// forgetSilent is when a path that does not answer any more is forgotten, if there is another; a query finds it again.
	forgetSilent = 5 * time.Minute
)

// verify stops data on a path until it has proved the identity again, and with size that full frames get through.
func (c *Core) verify(p *path, size bool) {
	wasUp := p.phase == pathUp
	c.park(p)
	p.phase = pathIdentifying
	p.needSize = p.needSize || size
	if p.ctl.kind == controlSize {
		c.endControl(&p.ctl)
	}
	if p.ctl.kind == controlIdentify && p.claimed {
		c.endControl(&p.ctl) // its claim is from before what gave rise to doubt
	}
	if p.ctl.kind == controlNone {
		c.sendProof(p)
	}
	if wasUp {
		c.changed = true
		c.querySoon()
	}
}

// prove asks for the identity while data go on.
func (c *Core) prove(p *path) {
	p.proveAt = c.now + reproveEvery
	if p.ctl.kind == controlNone {
		c.sendProof(p)
	}
	c.wake(p.proveAt)
}

// sendProof asks a path for its identity: of a foreign target first for the claim in its config string, which is half of it.
func (c *Core) sendProof(p *path) {
	if _, claim := aoe.ClaimGeneration([]byte(p.configString)); !claim {
		c.sendIdentify(p)
		return
	}
	f := c.control.Get()
	if f == nil {
		c.wake(c.now + starvedPoll)
		return
	}
	tag := c.controlTag()
	h := c.header(p, tag)
	f.SetLen(aoe.Pad(f.Buf(), aoe.PutConfig(f.Buf(), &h, &aoe.ConfigFields{})))
	c.startControl(&p.ctl, controlClaim, p, tag, f)
}

// sendIdentify asks a path for its IDENTIFY data; if there is no buffer, a tick does it.
func (c *Core) sendIdentify(p *path) {
	f := c.control.Get()
	if f == nil {
		c.wake(c.now + starvedPoll)
		return
	}
	tag := c.controlTag()
	h := c.header(p, tag)
	aoe.PutATA(f.Buf(), &h, &aoe.ATAFields{Sectors: 1, Command: aoe.ATAIdentify, Device: 0xa0})
	f.SetLen(aoe.Pad(f.Buf(), aoe.ATALen))
	c.startControl(&p.ctl, controlIdentify, p, tag, f)
}

// bad takes a path out of use: another volume answers there.
func (c *Core) bad(p *path, why error) {
	wasUp := p.phase == pathUp
	c.park(p)
	c.endControl(&p.ctl)
	if c.session.ctl.path == p {
		c.endControl(&c.session.ctl)
	}
	p.phase, p.message, p.proven = pathBad, why, 0
	c.refuseAttach(why)
	c.changed = true
	if wasUp {
		c.querySoon()
	}
}

// refuseAttach remembers the most telling reason why an attachment does not come about.
func (c *Core) refuseAttach(why error) {
	if c.refusal == nil {
		c.refusedAt = c.now
	}
	c.refusal = why
}

// onControl takes the answer to a path's exchange.
func (c *Core) onControl(p *path, f aoe.Frame) bool {
	k := p.ctl
	switch k.kind {
	case controlSize:
		return c.onSize(p, f)
	case controlClaim:
		return false // no answer to a config query
	}
	if f.IsError() {
		// The target is there but does not say who it is; it is asked again when the exchange is due.
		p.heardFrom(c.now)
		return true
	}
	ata, err := f.ATA()
	if err != nil || aoe.StatusFailed(ata.Status()) {
		return false
	}
	id, err := aoe.ParseIdentify(ata.Data())
	if err != nil {
		return false
	}
	if k.tries == 1 {
		p.measure(c.now - k.sentAt)
	}
	p.heardFrom(c.now)
	c.endControl(&p.ctl)
	c.onIdentify(p, id)
	return true
}
