package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// trimMax is the most sectors that one frame of TRIM covers: whole entries, each a multiple of 4 KiB.
const (
	trimEntry = aoe.MaxTrimSectors &^ 7
	trimMax   = trimEntry * aoe.TrimEntriesPerBlock
)

// pump frames and sends what windows, tags and buffers allow: first what waits for a path, then parts whose frame was given up, then
// new parts.
func (c *Core) pump() {
	c.starved = false
	if c.flowing() {
		c.unpark()
		for c.flowing() && len(c.redo) > 0 && c.sendRedo() {
		}
		for c.flowing() && len(c.redo) == 0 && !c.waiting.empty() && c.sendWaiting() {
		}
	}
	if c.starved {
		c.wake(c.now + starvedPoll)
	}
}

// flowing says whether data frames may be sent: the session is open, or there is none to open.
func (c *Core) flowing() bool {
	return c.session.state == sessionOpen || c.session.state == sessionForeign
}

// sendWaiting deals with the next part of the first waiting request; false: nothing more can be sent now.
func (c *Core) sendWaiting() bool {
	r := c.waiting.first
	if err := c.overtaken(r); err != nil {
		c.waiting.pop()
		c.answered(r, r.units()-r.framed, err)
		return true
	}
	p := c.best()
	if p == nil {
		return false
	}
	n := part(r.Op, r.LBA+uint64(r.framed), r.Sectors-r.framed, p.limit)
	if c.mustWait(r, r.framed, n) {
		if !r.held {
			r.held = true
			c.stats.Held++
		}
		c.held.push(c.waiting.pop())
		return true
	}
	if !c.sendPart(p, r, r.framed, n, 1) {
		return false
	}
	r.framed += n
	if r.framed == r.Sectors {
		c.waiting.pop()
		if r.Op == OpFlush {
			r.framed = 1 // as units counts
		}
	}
	return true
}

// overtaken is the error that makes the rest of a request pointless.
func (c *Core) overtaken(r *Request) error {
	if r.Err == nil && c.lostTo(r) {
		return ErrLost
	}
	return r.Err
}

// sendRedo deals with a part whose frame was given up.
func (c *Core) sendRedo() bool {
	s := &c.redo[len(c.redo)-1]
	if err := c.overtaken(s.req); err != nil {
		done := *s
		c.redo = c.redo[:len(c.redo)-1]
		c.answered(done.req, done.units(), err)
		return true
	}
	p := c.best()
	if p == nil {
		return false
	}
	n := part(s.req.Op, s.req.LBA+uint64(s.from), s.sectors, p.limit)
	// Counted as sent before: its answer measures nothing, and a late copy of the first frame may be about.
	if !c.sendPart(p, s.req, s.from, n, 2) {
		return false
	}
	s.from += n
	s.sectors -= n
	if s.sectors == 0 {
		c.redo = c.redo[:len(c.redo)-1]
	}
	return true
}

// part is how many sectors go into the next frame: at most limit, ending where a block of 4 KiB ends if limit has room for one, so that
// such a block is never torn.
func part(op Op, lba uint64, left uint32, limit int) uint32 {
	n := uint32(limit)
	switch {
	case op == OpFlush:
		return 0
	case op == OpTrim:
		n = trimMax
	case limit >= 8:
		n = n&^7 - uint32(lba&7)
	}
	return min(n, left)
}

// sendPart frames and sends a part of a request over p; false if there is no tag or no buffer for it.
func (c *Core) sendPart(p *path, r *Request, from, sectors uint32, sends int) bool {
	if !c.table.room() {
		if len(c.table.free) == 0 { // there are as many entries as frames below the ceiling
			c.stats.PoolWaits++
			c.stats.PoolCapped++
		}
		return false
	}
	f := c.data.Get()
	if f == nil {
		c.starved = true
		return false
	}
	e, counter := c.table.add()
	*e = entry{
		tag: aoe.MakeTag(c.cfg.Shard, c.session.epoch, counter),
		req: r, from: from, sectors: sectors, path: p, frame: f, sends: sends, mark: c.acked, rto: p.rto(),
	}
	if e.slow() {
		e.rto = max(e.rto, rtoSlow)
	}
	f.SetLen(c.build(f.Buf(), e))
	p.count(e)
	c.transmit(e)
	return true
}

// build writes the frame of an entry and returns its length. A write's data may come later.
func (c *Core) build(b []byte, e *entry) int {
	h := c.header(e.path, e.tag)
	r := e.req
	switch r.Op {
	case OpFlush:
		aoe.PutATA(b, &h, &aoe.ATAFields{Flags: extended(c.flush.command), Command: c.flush.command})
	case OpTrim:
		aoe.PutATA(b, &h, &aoe.ATAFields{
			Flags: aoe.ATAExtended | aoe.ATAWrite, Feature: aoe.FeatureTrim, Sectors: 1, Command: aoe.ATADataSetManagement,
		})
		putTrim(b[aoe.ATALen:aoe.ATALen+aoe.SectorSize], e.lba(), e.sectors)
		return aoe.ATALen + aoe.SectorSize
	case OpRead:
		f := aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, Sectors: uint8(e.sectors), LBA: e.lba()}
		if !c.identity.lba48 {
			f.Flags, f.Command, f.Device = 0, aoe.ATARead, lbaMode
		}
		aoe.PutATA(b, &h, &f)
	case OpWrite:
		f := aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATAWriteExt, Sectors: uint8(e.sectors), LBA: e.lba()}
		switch {
		case r.FUA:
			f.Command = aoe.ATAWriteDMAFUAExt
		case !c.identity.lba48:
			f.Flags, f.Command, f.Device = aoe.ATAWrite, aoe.ATAWriteSectors, lbaMode
		}
		aoe.PutATA(b, &h, &f)
		length := aoe.ATALen + int(e.sectors)*aoe.SectorSize
		c.fetch(e, b[aoe.ATALen:length])
		return length
	}
	return aoe.Pad(b, aoe.ATALen)
}

// lbaMode is the device register's high half for commands of 28 bits of LBA.
const lbaMode = 0xe0

// extended is the flag that goes with the command.
func extended(command aoe.ATACommand) aoe.ATAFlags {
	if command.IsExt() {
		return aoe.ATAExtended
	}
	return 0
}

// putTrim fills one sector with ranges that end at multiples of 4 KiB, if the first begins at one.
func putTrim(payload []byte, lba uint64, sectors uint32) {
	clear(payload)
	for at := 0; sectors > 0; at += aoe.TrimEntrySize {
		n := min(sectors, trimEntry)
		aoe.PutTrim(payload[at:at+aoe.TrimEntrySize], lba, uint64(n))
		lba += uint64(n)
		sectors -= n
	}
}

// header is that of a request over p.
func (c *Core) header(p *path, tag uint32) aoe.Header {
	return aoe.Header{Dst: p.mac, Src: c.links[p.link].MAC, Addr: c.cfg.Addr, Tag: tag}
}

// transmit sends an entry's frame, for the first time or again.
func (c *Core) transmit(e *entry) {
	e.frame.Hold()
	c.out = append(c.out, Transmit{Link: e.path.link, Frame: e.frame})
	c.stats.FramesSent++
	if e.firstAt == 0 {
		e.firstAt = c.now
	}
	e.sentAt = c.now
	e.due = c.now + e.rto
	c.wake(e.due)
}

// tickTable retransmits what is overdue. While the session is opened again there is no point: everything gets a new tag after.
func (c *Core) tickTable() {
	if !c.flowing() {
		return
	}
	for i := range c.table.entries {
		e := &c.table.entries[i]
		switch {
		case e.req == nil || e.parked:
		case e.due > c.now:
			c.wake(e.due)
		default:
			c.timeout(e)
			if !c.flowing() {
				return
			}
		}
	}
}

// timeout retransmits one frame, or suspects its path.
func (c *Core) timeout(e *entry) {
	p := e.path
	if e.slow() {
		c.prove(p) // the disk may be busy; whether the path is alive is another question
	} else if c.deadEnd(p, e.rto) {
		c.verify(p, true)
		return
	} else if p.shrink(c.now, e.sentAt) {
		p.timeouts++
		if p.timeouts >= suspectAfter {
			c.verify(p, true)
			return
		}
	}
	e.rto = min(2*e.rto, rtoMax)
	c.resend(e)
}

// deadEnd says whether a path is to blame for a timeout: it has been silent for about as long, and the target has answered over
// another one meanwhile. What is outstanding should not wait there for more timeouts.
func (c *Core) deadEnd(p *path, timeout time.Duration) bool {
	for i := range c.paths {
		if q := &c.paths[i]; q.used && q != p && q.phase == pathUp && q.heard-p.heard > timeout/2 {
			return true
		}
	}
	return false
}

// resend sends an entry's frame again, the same bytes on the same path.
func (c *Core) resend(e *entry) {
	if c.tooLong(e, e.path) {
		e.path.discount(e)
		c.refit(e)
		return
	}
	e.sends++
	e.path.order.remove(e) // behind those sent meanwhile
	e.path.order.add(e)
	c.stats.Retransmits++
	c.transmit(e)
}

// tooLong says whether the entry does not fit the path any more.
func (c *Core) tooLong(e *entry, p *path) bool {
	return (e.req.Op == OpRead || e.req.Op == OpWrite) && int(e.sectors) > p.limit
}

// refit gives up an entry, which counts on no path, to frame its sectors in other parts. The target may still execute the first frame of
// a write: in a session a new epoch prevents that, without one nothing may overtake it.
func (c *Core) refit(e *entry) {
	if e.req.modifies() && c.session.state == sessionOpen {
		e.parked, e.due = true, never // until the new epoch
		c.parked++
		c.reopen()
		return
	}
	c.giveUp(e)
}

// giveUp turns an entry into a span to be framed again.
func (c *Core) giveUp(e *entry) {
	c.redo = append(c.redo, span{req: e.req, from: e.from, sectors: e.sectors})
	c.holdRange(e)
	e.frame.Release()
	c.table.remove(e)
}

// abandon forgets an entry and fails its part with err.
func (c *Core) abandon(e *entry, err error) {
	c.detachEntry(e)
	c.holdRange(e)
	r, units := e.req, e.units()
	e.frame.Release()
	c.table.remove(e)
	c.answered(r, units, err)
}

// holdRange keeps newer writes off a range where a late copy may arrive.
func (c *Core) holdRange(e *entry) {
	if e.req.modifies() && c.session.state != sessionOpen {
		c.holds.add(e.lba(), e.sectors, c.now+duplicateLifetime)
		c.wake(c.now + duplicateLifetime)
	}
}

// detachEntry takes an entry off its path's count.
func (c *Core) detachEntry(e *entry) {
	if e.parked {
		e.parked = false
		c.parked--
		return
	}
	e.path.discount(e)
}

// unpark sends what waited for a path: over its own if that is back, else as a copy over another.
func (c *Core) unpark() {
	if c.parked > 0 {
		c.settle() // what is copied to another frame must be there
	}
	for i := 0; i < len(c.table.entries) && c.parked > 0; i++ {
		e := &c.table.entries[i]
		if e.req == nil || !e.parked {
			continue
		}
		p := c.best()
		if p == nil {
			return
		}
		if own := e.path; own != nil && own.phase == pathUp && own.inflight < own.cwnd && !own.silent(c.now) {
			p = own
		}
		if c.tooLong(e, p) {
			c.detachEntry(e)
			c.refit(e)
			if !c.flowing() {
				return
			}
			continue
		}
		if p != e.path && !c.copyTo(e, p) {
			c.starved = true
			return
		}
		c.detachEntry(e)
		p.count(e)
		e.path, e.rto = p, p.rto()
		if e.slow() {
			e.rto = max(e.rto, rtoSlow)
		}
		c.resend(e)
	}
}

// copyTo gives an entry a fresh frame for another path: the network may hold the old one.
func (c *Core) copyTo(e *entry, p *path) bool {
	f := c.data.Get()
	if f == nil {
		f = c.data.GetReserve()
	}
	if f == nil {
		return false
	}
	f.SetLen(copy(f.Buf(), e.frame.Bytes()))
	view := aoe.Frame(f.Bytes())
	view.SetDst(p.mac)
	view.SetSrc(c.links[p.link].MAC)
	e.frame.Release()
	e.frame, e.firstAt = f, 0
	return true
}

// answered takes units off a request and completes it with the last of them.
func (c *Core) answered(r *Request, units uint32, err error) {
	if r.Err == nil {
		r.Err = err
	}
	r.left -= units
	if r.left == 0 {
		c.done.push(r)
	}
}

// progressed notes that the target does its work.
func (c *Core) progressed() {
	c.progress = c.now
	c.session.fruitless = 0
}

// backoffDelay doubles from first with every try, up to most.
func backoffDelay(first, most time.Duration, tries int) time.Duration {
	d := first
	for ; tries > 0 && d < most; tries-- {
		d *= 2
	}
	return min(d, most)
}
