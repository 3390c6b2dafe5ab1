package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// sessionState is what is agreed with the target:
//
//	none → opening → open ⇄ opening      → closing → closed
//	          └────→ foreign                  ↑ (from any)
type sessionState uint8

const (
	sessionNone sessionState = iota
	sessionOpening
	sessionOpen
	sessionForeign // the target knows no sessions
	sessionClosing
	sessionClosed
)

const (
	// silentOpens is how many unanswered OPENs say that a target does not know the command.
	silentOpens = 5
	// unknownOpens is how many refused ones say so.
	unknownOpens = 4
	// openTries is how many are sent over one path before another has its turn.
	openTries = 3
	// closeTries is how often a CLOSE is sent; nobody depends on it.
	closeTries = 4
	// busyRetry, epochRetry and refusedRetry are how soon to ask again after such an answer.
	busyRetry    = 20 * time.Millisecond
	epochRetry   = 200 * time.Millisecond
	refusedRetry = 5 * time.Second
)

// session is OPEN's side of the target.
type session struct {
	state       sessionState
	ctl         control
	incarnation uint64
	step        uint64 // what is added to it when it is stale
	epoch       uint8
	managed     bool // a session was open: the target is ours for good
	cacheEpoch  uint64
	cacheKnown  bool
	admission   uint32 // which one of this node's the attachment is of; 0: not told yet
	fenced      bool   // it is over: nothing of the attachment goes out any more
	silent      int
	unknown     int // OPENs refused as an unknown command
	fruitless   int // sessions opened since the target last answered a request
	refused     error
	retryAt     time.Duration
}

// generation is whom OPEN means.
func (c *Core) generation() (g aoe.Generation) {
	if c.cfg.Generation != "" {
		copy(g[:], c.cfg.Generation)
	} else {
		copy(g[:], c.identity.generation)
	}
	return g
}

// advance sends OPEN if it is time and there is a path that has proved the identity.
func (c *Core) advance() {
	s := &c.session
	if s.state != sessionNone && s.state != sessionOpening || s.ctl.kind != controlNone || s.fenced {
		return
	}
	if s.retryAt > c.now {
		c.wake(s.retryAt)
		return
	}
	p := c.speaker()
	if p == nil {
		return
	}
	s.state = sessionOpening
	c.sendOpen(p, controlOpen, aoe.OpenSession)
}

// speaker is a path over which to talk about the session.
func (c *Core) speaker() *path {
	for i := range c.paths {
		p := &c.paths[i]
		if p.used && (p.phase == pathIdentified || p.phase == pathSizing || p.phase == pathUp) {
			return p
		}
	}
	return nil
}

// sendOpen starts an OPEN or CLOSE over p.
func (c *Core) sendOpen(p *path, kind controlKind, op aoe.OpenOp) {
	f := c.control.Get()
	if f == nil {
		c.session.retryAt = c.now + busyRetry
		c.wake(c.session.retryAt)
		return
	}
	tag := c.controlTag()
	h := c.header(p, tag)
	f.SetLen(aoe.PutOpen(f.Buf(), &h, &aoe.OpenFields{
		Op: op, Initiator: c.cfg.UUID, Incarnation: c.session.incarnation, Generation: c.generation(), Admission: c.session.admission,
	}))
	c.startControl(&c.session.ctl, kind, p, tag, f)
}

// tickSession repeats what was not answered.
func (c *Core) tickSession() {
	s := &c.session
	if s.ctl.kind == controlNone {
		c.advance()
		return
	}
	if s.ctl.due > c.now {
		c.wake(s.ctl.due)
		return
	}
	switch {
	case s.ctl.kind == controlClose && s.ctl.tries >= closeTries:
		c.endControl(&s.ctl)
		s.state = sessionClosed
		c.changed = true
	case s.ctl.kind == controlClose:
		c.sendControl(&s.ctl)
	default:
		c.openSilent()
	}
}

// openSilent: no answer to OPEN. The target may not know the command, or the path may be gone. One whose config string says that it is
// ours does know it.
func (c *Core) openSilent() {
	s := &c.session
	s.silent++
	if s.silent >= silentOpens && !s.managed && c.identity.generation == "" {
		c.endControl(&s.ctl)
		c.foreign()
		return
	}
	if s.ctl.tries < openTries {
		c.sendControl(&s.ctl)
		return
	}
	p := s.ctl.path
	c.endControl(&s.ctl)
	c.verify(p, false)
	c.advance()
}

// reopen begins a new session, when the target asks for it or when frames of the current one must not be executed any more.
func (c *Core) reopen() {
	s := &c.session
	s.state = sessionOpening
	s.incarnation++
	if s.fruitless > 0 {
		s.retryAt = c.now + backoffDelay(busyRetry, time.Second, s.fruitless-1)
	}
	c.changed = true
	c.advance()
}

// onOpen takes the answer to OPEN or CLOSE.
func (c *Core) onOpen(p *path, f aoe.Frame) bool {
	s := &c.session
	if f.IsError() {
		p.heardFrom(c.now)
		return c.onOpenRefused(f.ErrorCode())
	}
	o, err := f.Open()
	if err != nil || o.Initiator() != c.cfg.UUID {
		return false
	}
	p.heardFrom(c.now)
	if s.ctl.kind == controlClose {
		c.endControl(&s.ctl)
		s.state = sessionClosed
		c.changed = true
		return true
	}
	if o.Status() == aoe.OpenDone && (o.Epoch() == 0 || o.Epoch() > aoe.MaxEpoch || o.Window() == 0 || o.Incarnation() != s.incarnation) {
		return false
	}
	c.endControl(&s.ctl)
	c.onOpenStatus(p, o)
	return true
}

// onOpenRefused takes an AoE error as the answer to OPEN. One "command not recognised" may mean that the frame was damaged on its way.
func (c *Core) onOpenRefused(code aoe.ErrorCode) bool {
	s := &c.session
	closing := s.ctl.kind == controlClose
	c.endControl(&s.ctl)
	switch {
	case closing:
		s.state = sessionClosed
		c.changed = true
	case !s.managed && (code == aoe.ErrorCommand || code == aoe.ErrorArgument):
		if s.unknown++; s.unknown >= unknownOpens {
			c.foreign()
			return true
		}
		c.advance()
	default:
		c.retryOpen(epochRetry)
	}
	return true
}

// retryOpen asks again later.
func (c *Core) retryOpen(after time.Duration) {
	c.session.retryAt = c.now + after
	c.wake(c.session.retryAt)
}

// onOpenStatus acts on the outcome of OPEN.
func (c *Core) onOpenStatus(p *path, o aoe.Open) {
	s := &c.session
	if o.Status() != aoe.OpenNotAdmitted && s.refused != nil {
		s.refused, c.changed = nil, true
	}
	switch o.Status() {
	case aoe.OpenDone:
		c.opened(o)
	case aoe.OpenNotAdmitted:
		s.refused, c.changed = ErrNotAdmitted, true
		c.refuseAttach(ErrNotAdmitted)
		c.retryOpen(refusedRetry)
		c.failAll(ErrNotAdmitted)
	case aoe.OpenOtherAdmission:
		c.onOtherAdmission(o)
	case aoe.OpenOtherGeneration:
		c.bad(p, ErrIdentity)
	case aoe.OpenStale:
		// A clock that went back must not keep us out for as long as it went back: the steps grow.
		s.step = max(1, s.step*16)
		s.incarnation = max(s.incarnation, o.Incarnation()) + s.step
		c.advance()
	case aoe.OpenNoSessions:
		if !s.managed {
			c.foreign()
			return
		}
		c.retryOpen(epochRetry)
	case aoe.OpenBusy:
		c.retryOpen(busyRetry)
	default:
		c.retryOpen(epochRetry)
	}
}

// onOtherAdmission ends the attachment: others may have written to the volume since it was made, and what is left of it is older. What the kernel still has
// of it is refused until it is attached anew.
func (c *Core) onOtherAdmission(o aoe.Open) {
	s := &c.session
	if o.Admission() == 0 || o.Admission() == s.admission {
		c.retryOpen(epochRetry) // damaged on the way
		return
	}
	s.fenced, s.refused, c.changed = true, ErrFenced, true
	c.refuseAttach(ErrFenced)
	c.failAll(ErrFenced)
}

// opened begins the session that the target granted: all that is outstanding gets new tags and new frames, since the old ones may still
// be on the wire, or in the network's hands.
func (c *Core) opened(o aoe.Open) {
	s := &c.session
	if s.cacheKnown && s.cacheEpoch != o.CacheEpoch() && (!s.managed || c.acked > c.durable) {
		c.latch()
	}
	s.cacheEpoch, s.cacheKnown = o.CacheEpoch(), true
	if s.admission == 0 {
		s.admission = o.Admission()
	}
	s.managed, s.step = true, 0
	s.silent = 0
	s.fruitless++
	for i := range c.table.entries {
		if e := &c.table.entries[i]; e.req != nil {
			c.detachEntry(e)
			c.redo = append(c.redo, span{req: e.req, from: e.from, sectors: e.sectors})
			e.frame.Release()
			c.table.remove(e)
		}
	}
	s.state, s.epoch = sessionOpen, o.Epoch()
	c.table.restart(1, aoe.TagCounters, o.Window())
	c.changed = true
	c.admitAll()
}

// foreign goes on without sessions.
func (c *Core) foreign() {
	c.session.state = sessionForeign
	c.changed = true
	c.admitAll()
}

// admitAll lets the paths that waited for the session carry data.
func (c *Core) admitAll() {
	for i := range c.paths {
		p := &c.paths[i]
		if !p.used {
			continue
		}
		if p.ctl.kind == controlSize {
			c.endControl(&p.ctl) // its tag is of the session before
		}
		if p.phase == pathIdentified || p.phase == pathSizing {
			c.admit(p)
		}
	}
}

// Close begins the end: the session is closed if the target answers; nothing is submitted any more. Pending requests must have been completed or
// failed before. Call it until Closed, then Release.
func (c *Core) Close(now time.Duration) {
	c.enter(now)
	s := &c.session
	if !c.closed {
		c.closed, c.changed = true, true
		managed := s.state == sessionOpen || s.state == sessionOpening && s.managed
		c.endControl(&s.ctl)
		p := c.speaker()
		s.state = sessionClosed
		if managed && p != nil {
			s.state = sessionClosing
			c.sendOpen(p, controlClose, aoe.CloseSession)
			if s.ctl.kind == controlNone {
				s.state = sessionClosed
			}
		}
	}
	c.leave()
}

// Closed says whether Close has come to its end. At a target without sessions that takes until no late copy of a write can overwrite
// what the next attachment writes.
func (c *Core) Closed(now time.Duration) bool {
	s := &c.session
	return c.closed && (s.state != sessionClosing || s.ctl.kind == controlNone) && (s.managed || !c.holds.any(now))
}

// Release gives the memory back; frames that the network holds keep theirs until it lets go. Requests still pending are never completed. All
// methods but Info, State, Stats and Release are over.
func (c *Core) Release() error {
	for i := range c.paths {
		if c.paths[i].used {
			c.dropPath(&c.paths[i])
		}
	}
	c.endControl(&c.session.ctl)
	for i := range c.table.entries {
		if e := &c.table.entries[i]; e.req != nil {
			e.frame.Release()
			c.table.remove(e)
		}
	}
	c.parked = 0
	c.copies = copies{}
	for _, t := range c.out {
		t.Frame.Release()
	}
	c.out = c.out[:0]
	err := c.control.Close()
	if c.data != nil {
		if derr := c.data.Close(); err == nil {
			err = derr
		}
	}
	return err
}
