package initiator

import "time"

// Lost frames are noticed before their timeout by those that were sent after them and are answered already, as RFC 8985 (RACK) does for
// TCP. Compared are times of sending alone, never the clock: when target or initiator stand still for a while, nobody is overtaken. Targets
// answer in any order, so one round trip's worth of overtaking is no sign of a loss, and where it turns out that there was none,
// the path becomes more patient.
const (
	// orderLeast is how much later a frame may have been sent than an older one that it overtakes, at least.
	orderLeast = 500 * time.Microsecond
	// patienceMost is how often that is doubled at most, calmAfter how many losses in a row were real before patience ends.
	patienceMost = 6
	calmAfter    = 16
)

// order is what a path knows of its frames' order: those outstanding, longest sent first, and how far answers have come.
type order struct {
	first, last *entry
	newest      time.Duration // when the latest of the answered frames was sent; of those sent once, since others are ambiguous
	least       time.Duration // round trip, lately
	patience    uint          // doublings
	real        int           // losses since the last mistake
}

// add puts a frame that is about to be sent behind all others.
func (o *order) add(e *entry) {
	e.before, e.after = o.last, nil
	if o.last != nil {
		o.last.after = e
	} else {
		o.first = e
	}
	o.last = e
}

// remove takes a frame out.
func (o *order) remove(e *entry) {
	if e.before != nil {
		e.before.after = e.after
	} else {
		o.first = e.after
	}
	if e.after != nil {
		e.after.before = e.before
	} else {
		o.last = e.before
	}
	e.before, e.after = nil, nil
}

// count puts an entry on the path's count of outstanding frames; transmit comes next.
func (p *path) count(e *entry) {
	p.inflight++
	p.order.add(e)
}

// discount takes it off.
func (p *path) discount(e *entry) {
	p.inflight--
	p.order.remove(e)
}

// overtakeSpan is how much later than an overtaken frame another must have been sent for a loss.
func (p *path) overtakeSpan() time.Duration {
	return min(max(p.srtt, orderLeast)<<p.order.patience, p.rto())
}

// mistaken notes that a frame was sent again though it was not lost.
func (p *path) mistaken() {
	p.order.patience = min(p.order.patience+1, patienceMost)
	p.order.real = 0
}

// recovered notes that a frame was sent again with good reason.
func (p *path) recovered() {
	if p.order.real++; p.order.real >= calmAfter && p.order.patience > 0 {
		p.order.patience--
		p.order.real = 0
	}
}

// yield takes a frame off the window for one that was lost while later ones got through: so many fit. Once in a round it is
// halved at most, as for a timeout.
func (p *path) yield(now, sentAt time.Duration) {
	if sentAt >= p.cut {
		p.cut, p.uncut = now, p.cwnd
	}
	p.cwnd = min(p.cwnd, max(1, p.uncut/2, p.cwnd-1))
	p.ssthresh = p.cwnd // and acks go on counting: a loss now and then must not keep the window from growing
}

// learnOrder takes what an answered frame says of those before it.
func (p *path) learnOrder(now time.Duration, e *entry) {
	switch {
	case e.slow():
	case e.sends == 1:
		p.order.newest = max(p.order.newest, e.sentAt)
		if rtt := now - e.sentAt; p.order.least == 0 || rtt < p.order.least {
			p.order.least = rtt
		} else {
			p.order.least += (rtt - p.order.least) / 4096
		}
	case e.sentAt == e.firstAt: // in other parts before
	case e.quick && now-e.sentAt < p.order.least/2:
		p.mistaken() // too soon for an answer to the copy (RFC 8985, 6.2, step 2)
	default:
		p.recovered() // also from a timeout: else a path that waits for those would do so for ever
	}
}

// resendOvertaken sends again what others have overtaken by far; each copy has to be overtaken by twice as much.
func (c *Core) resendOvertaken(p *path) {
	if p.order.first == nil || p.order.first.sentAt >= p.order.newest || p.phase != pathUp || !c.flowing() {
		return
	}
	span := p.overtakeSpan()
	for e := p.order.first; e != nil && p.order.newest-e.sentAt > span; {
		next := e.after
		if c.quickly(e) && p.order.newest-e.sentAt > span<<min(e.sends-1, patienceMost) {
			p.yield(c.now, e.sentAt)
			e.quick = true
			c.resend(e)
			if !c.flowing() {
				return
			}
		}
		e = next
	}
}

// quickly says whether an entry may be sent again before its timeout: not what may take long, and no write to a target that cannot
// tell copies apart, since it would keep later writes from its place for a second.
func (c *Core) quickly(e *entry) bool {
	return !e.slow() && (!e.req.modifies() || c.session.state == sessionOpen)
}
