package initiator

import "time"

// Info is what the target said about itself.
func (c *Core) Info() Info {
	info := c.identity.info
	info.Session = c.session.managed
	return info
}

// Ready says whether the target is identified, opened and known well enough to serve requests.
func (c *Core) Ready() bool { return c.ready }

// Refusal is why an attachment does not come about, and since when; nil if nobody has refused.
func (c *Core) Refusal() (since time.Duration, why error) { return c.refusedAt, c.refusal }

// Changed says whether State, Info or Paths changed noticeably since the last call.
func (c *Core) Changed() bool {
	changed := c.changed
	c.changed = false
	return changed
}

// State is the device's condition; Since is left to the caller, who has a clock.
func (c *Core) State() State {
	s := State{Incarnation: c.session.incarnation, Lost: c.lost, Admission: c.session.admission}
	if c.session.cacheKnown {
		s.CacheEpoch = c.session.cacheEpoch
	}
	s.Phase, s.Err = c.phase()
	return s
}

func (c *Core) phase() (Phase, error) {
	switch {
	case c.closed:
		return PhaseClosed, nil
	case !c.ready:
		return PhaseAttaching, c.refusal
	case c.session.refused != nil:
		return PhaseFailed, c.session.refused
	case c.dead:
		return PhaseFailed, ErrDead
	case c.stalled:
		return PhaseStalled, c.silence()
	}
	return PhaseLive, nil
}

// silence is why no path is up: another volume answers, or nobody does.
func (c *Core) silence() error {
	for i := range c.paths {
		if p := &c.paths[i]; p.used && p.phase == pathBad {
			return p.message
		}
	}
	return ErrNoAnswer
}

// Paths appends what is known of the ways to the target to dst.
func (c *Core) Paths(dst []PathInfo) []PathInfo {
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used {
			continue
		}
		info := PathInfo{
			Interface: c.links[p.link].Name, MAC: p.mac, MaxSectors: p.limit, Window: p.cwnd, RTT: p.srtt, Timeout: p.rto(),
		}
		switch {
		case p.phase == pathUp:
			info.State = PathUp
		case p.phase == pathBad:
			info.State, info.Message = PathDown, p.message.Error()
		case p.phase == pathIdentifying && p.ctl.tries > suspectAfter:
			info.State, info.Message = PathDown, ErrNoAnswer.Error()
		}
		dst = append(dst, info)
	}
	return dst
}

// Stats are the counters since the attachment.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Outstanding = c.pending
	s.PoolCeiling = c.cfg.PoolMax
	if c.data != nil {
		p := c.data.Stats()
		s.PoolFrames = int(p.Frames)
		s.PoolGrown = uint64(p.Grown)
		s.PoolWaits += uint64(p.Waits)
		s.PoolCapped += uint64(p.Capped)
	}
	return s
}

// Reconfirm makes every path that is up prove the identity again, and so learns a larger size; Proofs counts what comes of it. A
// question that is on its way already is asked anew: its answer may be from before a growth.
func (c *Core) Reconfirm(now time.Duration) {
	c.enter(now)
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used || p.phase != pathUp {
			continue
		}
		if p.ctl.kind == controlIdentify {
			c.endControl(&p.ctl)
		}
		c.prove(p)
	}
	c.leave()
}

// Proofs is how often a path has proved the identity.
func (c *Core) Proofs() uint64 { return c.identity.seen }
