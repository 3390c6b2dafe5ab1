package initiator

import (
	"bytes"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// versionTries is how often a frame may be refused for its version, which is as right as that of all others.
const versionTries = 4

// Receive takes a frame from a link; b is borrowed until Settle. What is no answer to something outstanding, over the path it went, is
// counted and forgotten.
func (c *Core) Receive(now time.Duration, link LinkID, b []byte) {
	c.enter(now)
	if c.receive(link, b) {
		c.stats.FramesReceived++
	} else {
		c.stats.Rejected++
	}
	c.leave()
}

// Settle ends the loan of all frames that Receive took.
func (c *Core) Settle(now time.Duration) {
	if len(c.copies.transfers) == 0 {
		return
	}
	c.enter(now)
	c.settle()
	c.leave()
}

// receive says whether the frame meant something.
func (c *Core) receive(link LinkID, b []byte) bool {
	f, err := aoe.ParseFrame(b)
	if err != nil || !f.IsResponse() || f.Addr() != c.cfg.Addr || f.Src().IsMulticast() {
		return false
	}
	if link < 0 || int(link) >= len(c.links) || !c.usable(link) {
		return false
	}
	toUs := f.Dst() == c.links[link].MAC
	if f.Command() == aoe.CommandConfig {
		return (toUs || f.Dst() == aoe.Broadcast) && c.onConfig(link, f)
	}
	p := c.findPath(link, f.Src())
	if !toUs || p == nil || p.phase == pathBad { // there is another volume: what it says of our frames is worth nothing
		return false
	}
	switch f.Command() {
	case aoe.CommandATA:
		if e := c.table.find(f.Tag()); e != nil {
			if e.path != p || !c.onData(p, e, f) {
				return false
			}
			c.resendOvertaken(p)
			return true
		}
		if c.resent.take(p, f.Tag()) {
			return true
		}
		return p.ctl.kind != controlNone && p.ctl.tag == f.Tag() && c.onControl(p, f)
	case aoe.CommandOpen:
		k := &c.session.ctl
		return k.kind != controlNone && k.path == p && k.tag == f.Tag() && c.onOpen(p, f)
	}
	return false
}

// onData takes the answer to a data frame.
func (c *Core) onData(p *path, e *entry, f aoe.Frame) bool {
	if f.IsError() {
		if f.ErrorCode() == aoe.ErrorVersion && e.versions < versionTries {
			e.versions++
			p.heardFrom(c.now)
			if !e.parked { // else it goes when its path is beyond doubt
				c.resend(e) // damaged on the way: the target has answered others
			}
			return true
		}
		c.heard(p, e)
		c.onRefused(p, e, f.ErrorCode())
		return true
	}
	ata, err := f.ATA()
	if err != nil {
		return false
	}
	var payload []byte
	failed := aoe.StatusFailed(ata.Status())
	if e.req.Op == OpRead && !failed {
		if payload, err = ata.Payload(int(e.sectors)); err != nil {
			return false // cut short on the way: the retransmission may do better
		}
	}
	c.heard(p, e)
	c.progressed()
	if !e.slow() && e.sends == 1 {
		p.measure(c.now - e.sentAt)
	}
	p.learnOrder(c.now, e)
	p.grow()
	if failed {
		c.finish(e, c.ataError(e, ata))
		return true
	}
	c.succeed(e, payload)
	return true
}

// heard notes that the path is alive and takes the entry off its count, if it was on it.
func (c *Core) heard(p *path, e *entry) {
	p.heardFrom(c.now)
	c.detachEntry(e)
}

// succeed books what the target did.
func (c *Core) succeed(e *entry, payload []byte) {
	r := e.req
	if c.lostTo(r) {
		c.finish(e, ErrLost)
		return
	}
	switch r.Op {
	case OpRead:
		from, units := e.from, e.units()
		c.end(e)
		c.store(r, payload, from, units)
		return
	case OpWrite, OpTrim:
		if !r.FUA {
			c.acked++
		}
	case OpFlush:
		c.durable = max(c.durable, e.mark)
	}
	c.finish(e, nil)
}

// finish ends an entry, which counts on no path any more, with an outcome.
func (c *Core) finish(e *entry, err error) {
	r, units := e.req, e.units()
	c.end(e)
	c.answered(r, units, err)
}

// end forgets an entry that was answered; its part of the request is not, yet.
func (c *Core) end(e *entry) {
	r := e.req
	if !e.slow() && e.sentAt != e.firstAt {
		c.resent.put(answered{path: e.path, tag: e.tag, quick: e.quick, rtt: c.now - e.firstAt})
	}
	if r.modifies() {
		if e.sends > 1 {
			c.holdRange(e)
		}
		if !c.held.empty() {
			c.retryHeld()
		}
	}
	e.frame.Release()
	c.table.remove(e)
}

// ataError is what a failed command means.
func (c *Core) ataError(e *entry, ata aoe.ATA) error {
	if e.req.Op != OpFlush {
		return ErrIO
	}
	if e.req == &c.flush.request {
		switch {
		case ata.Error()&aoe.ATAErrABRT != 0 && ata.Status()&aoe.StatusDF == 0:
			return ErrUnsupported
		case c.acked == c.durable:
			return nil // there is such a command, and nothing of this attachment that it failed to make durable
		}
	}
	c.latch()
	return ErrIO
}

// latch remembers for good that acknowledged data may be gone.
func (c *Core) latch() {
	c.lost, c.changed = true, true
}

// lostTo says whether a request fails since acknowledged data may be gone: any but a read, which shows what is left. Not only flushes,
// since users of a device do not heed each flush that fails: jbd2_cleanup_journal_tail (fs/jbd2/checkpoint.c) goes on to write, with FUA, that the
// journal is needed no more, when what it has a copy of is what was lost.
func (c *Core) lostTo(r *Request) bool {
	return c.lost && r.Op != OpRead && r != &c.flush.request
}

// onRefused maps an AoE error; the entry counts on no path any more.
func (c *Core) onRefused(p *path, e *entry, code aoe.ErrorCode) {
	switch code {
	case aoe.ErrorUnavailable:
		c.unavailable(p, e)
		return
	case aoe.ErrorArgument:
		if (e.req.Op == OpRead || e.req.Op == OpWrite) && e.sectors > 1 {
			p.limit = min(p.limit, smaller(int(e.sectors)))
			c.redo = append(c.redo, span{req: e.req, from: e.from, sectors: e.sectors})
			e.frame.Release()
			c.table.remove(e)
			return
		}
		c.finish(e, ErrIO)
	case aoe.ErrorCommand:
		c.finish(e, ErrUnsupported)
	case aoe.ErrorReserved:
		c.progressed()
		c.finish(e, ErrReserved)
	default:
		c.finish(e, ErrIO)
	}
}

// unavailable keeps an entry that the target will not serve now: in a session because it wants a new OPEN. On a path in doubt it waits for
// that to be over, too.
func (c *Core) unavailable(p *path, e *entry) {
	if c.session.state == sessionForeign && p.phase == pathUp {
		e.sentAt = c.now // its place in the order is with what is sent now
		p.count(e)
		e.rto = min(max(2*e.rto, 100*time.Millisecond), rtoMax)
		e.due = c.now + e.rto
		c.wake(e.due)
		return
	}
	e.parked, e.due = true, never
	c.parked++
	if c.session.state == sessionOpen {
		c.reopen()
	}
}

// onConfig takes a config response, asked for or not: it makes, revives or doubts a path.
func (c *Core) onConfig(link LinkID, f aoe.Frame) bool {
	config, err := f.Config()
	if err != nil || f.IsError() {
		return false
	}
	text, err := config.ConfigString()
	if err != nil {
		return false
	}
	p := c.findPath(link, f.Src())
	fresh := p == nil
	if fresh {
		if p = c.addPath(link, f.Src()); p == nil {
			return false
		}
	}
	p.bufferCount = min(int(config.BufferCount()), c.cfg.PoolMax)
	p.sectorCount = config.SectorCount()
	c.resize(p)
	p.cwnd = min(p.cwnd, p.ceiling())
	if !c.rightString(text) {
		c.bad(p, ErrIdentity)
		return true
	}
	if p.configString != string(text) {
		p.configString = string(text)
	}
	_, p.claimed = aoe.ClaimGeneration(text)
	if p.ctl.kind == controlClaim && p.ctl.tag == f.Tag() {
		p.heardFrom(c.now)
		c.endControl(&p.ctl)
		c.sendIdentify(p)
		return true
	}
	switch {
	case fresh, p.phase == pathBad:
		p.resetWindow()
		c.verify(p, true)
	case f.Tag()&aoe.TagOwn == 0: // unasked
		c.onAdvertisement(p)
	case p.phase == pathIdentifying:
		c.hurry(p)
	}
	return true
}

// rightString says whether a config string may be the volume's.
func (c *Core) rightString(text []byte) bool {
	want := c.cfg.Generation
	if want == "" {
		want = c.identity.generation
	}
	if want == "" {
		return true
	}
	if rest, ok := bytes.CutPrefix(text, []byte(identityPrefix)); ok {
		return string(rest) == want
	}
	generation, ok := aoe.ClaimGeneration(text)
	return ok && string(generation) == want
}

// onAdvertisement: whoever says that it is here may be another one than before. No data until it has proved itself; a flood of
// advertisements does not stop data for more than one round trip in a tenth of a second.
func (c *Core) onAdvertisement(p *path) {
	switch p.phase {
	case pathIdentifying:
		c.hurry(p)
	case pathUp:
		if c.now-p.proven < advertisementsEvery {
			p.proveAt = min(p.proveAt, p.proven+advertisementsEvery)
			c.wake(p.proveAt)
			return
		}
		c.verify(p, false)
	}
}
