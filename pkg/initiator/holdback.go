package initiator

import "time"

// maxHolds is how many ranges are told apart; beyond it every write is held back.
const maxHolds = 512

type hold struct {
	lba, end uint64
	until    time.Duration
}

// holdBack remembers where a late copy of an old write may still arrive at a target that cannot tell copies apart. A newer write
// there has to wait: the copy would overwrite it.
type holdBack struct {
	ranges [maxHolds]hold
	n      int
	all    time.Duration // every write waits until then
}

// everything holds back all writes.
func (h *holdBack) everything(until time.Duration) { h.all = max(h.all, until) }

// add holds back writes to a range.
func (h *holdBack) add(lba uint64, sectors uint32, until time.Duration) {
	if h.n == maxHolds {
		h.everything(until)
		return
	}
	h.ranges[h.n] = hold{lba: lba, end: lba + uint64(sectors), until: until}
	h.n++
}

// expire forgets what is over.
func (h *holdBack) expire(now time.Duration) {
	kept := 0
	for _, r := range h.ranges[:h.n] {
		if r.until > now {
			h.ranges[kept] = r
			kept++
		}
	}
	h.n = kept
}

// any says whether any write would have to wait.
func (h *holdBack) any(now time.Duration) bool {
	h.expire(now)
	return h.n > 0 || h.all > now
}

// blocked returns until when a write to the range has to wait, 0 if it need not.
func (h *holdBack) blocked(now time.Duration, lba uint64, sectors uint32) time.Duration {
	until := time.Duration(0)
	if h.all > now {
		until = h.all
	}
	for _, r := range h.ranges[:h.n] {
		if r.until > now && lba < r.end && r.lba < lba+uint64(sectors) {
			until = max(until, r.until)
		}
	}
	return until
}

// mustWait says whether the part of a write may not be sent yet, and arranges a wake-up for when it may. Sessions need none of this:
// their target executes a tag once.
func (c *Core) mustWait(r *Request, from, sectors uint32) bool {
	if !r.modifies() || c.session.state == sessionOpen {
		return false
	}
	lba := r.LBA + uint64(from)
	if until := c.holds.blocked(c.now, lba, sectors); until > 0 {
		c.wake(until)
		return true
	}
	return c.overlaps(r, lba, sectors)
}

// overlaps says whether another request's write to the range is outstanding; it may have to be retransmitted. The answer to it wakes
// what waits.
func (c *Core) overlaps(r *Request, lba uint64, sectors uint32) bool {
	end := lba + uint64(sectors)
	for i := range c.table.entries {
		e := &c.table.entries[i]
		if e.req != nil && e.req != r && e.req.modifies() && e.lba() < end && lba < e.lba()+uint64(e.sectors) {
			return true
		}
	}
	for _, s := range c.redo {
		first := s.req.LBA + uint64(s.from)
		if s.req != r && s.req.modifies() && first < end && lba < first+uint64(s.sectors) {
			return true
		}
	}
	return false
}

// retryHeld lets held writes be looked at again.
func (c *Core) retryHeld() { c.waiting.prepend(&c.held) }
