package initiator

import (
	"fmt"
	"math"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// Times of the state machine. All time is a Duration since an origin that the caller chooses.
const (
	never = time.Duration(math.MaxInt64)
	// duplicateLifetime is how long a network may keep a copy of a frame.
	duplicateLifetime = time.Second
	// starvedPoll is how soon to look again for a frame that the network let go of.
	starvedPoll = time.Millisecond
	// stallGrace is how long no data can flow before State says so.
	stallGrace = 500 * time.Millisecond
)

// DefaultPoolMax is the ceiling of a device's frames.
const DefaultPoolMax = 256

// LinkID names a link to a Core.
type LinkID int

// LinkInfo is what a Core has to know of a link.
type LinkInfo struct {
	Name string
	MAC  aoe.MAC
	MTU  int
	// Local: the socket to a target on the same host; while there is one, other links are not used.
	Local bool
}

// Transmit is a frame to send, with one hold that the taker releases after handing it to the link.
type Transmit struct {
	Link  LinkID
	Frame *pool.Frame
}

// CoreConfig describes the target and the attachment.
type CoreConfig struct {
	Addr       aoe.Addr
	Generation string // identity to prove; empty: whoever answers first, and nobody else after
	UUID       aoe.UUID
	// Incarnation of the first OPEN, greater than all earlier ones of this initiator on this volume.
	Incarnation uint64
	Shard       uint8
	DeadTime    time.Duration // 0: wait for ever
	PoolMax     int           // frames; 0: DefaultPoolMax
	ReadOnly    bool
	// CacheEpoch, Admission and Lost as State had them when an earlier process let go of the device; zero at a first attachment.
	CacheEpoch uint64
	Admission  uint32
	Lost       bool
	// Recovered: an earlier process of ours may have left writes on the wire.
	Recovered bool
	// FirstCounter is where tags without a session begin; random, so that answers to an earlier process match nothing.
	FirstCounter uint32
	// MACs at which the target was seen are asked first, alone; everybody is asked when none of them answers. Empty: everybody.
	MACs []aoe.MAC
	// Batch copies from and to Request.Pages, and is borrowed; nil: a system call for each part.
	Batch *uring.Batch
}

type coreLink struct {
	LinkInfo
	present bool
}

// Core is the initiator's side of one target without socket, clock or goroutine. In: requests, received frames, the time. Out:
// Transmits, completions, Next. It is not safe for concurrent use; time never goes back.
//
//	query, IDENTIFY (path) → OPEN or foreign (target) → full-size READ (path) → flush learnt → ready
type Core struct {
	cfg     CoreConfig
	now     time.Duration
	next    time.Duration
	leaving bool
	changed bool
	closed  bool

	out     []Transmit
	copies  copies
	control *pool.Pool // small frames: a data pool at its ceiling never blocks recovery
	data    *pool.Pool // nil until the first path is identified
	// frameSize is that of data, in bytes.
	frameSize int

	links    []coreLink
	paths    [maxPaths]path
	identity identity
	session  session
	query    query
	flush    flushSupport

	table    table
	waiting  requestList // not, or not completely, in frames
	resent   resent
	held     requestList // writes behind a late copy of an older one
	holds    holdBack
	redo     []span // parts whose frame was given up, to be framed again
	done     requestList
	pending  int // requests submitted and not completed
	parked   int // table entries that wait for a path
	starved  bool
	progress time.Duration // when the target last answered a request, or waiting for it began
	dead     bool
	downAt   time.Duration // since when no data can flow; 0: they can
	stalled  bool          // for long enough to say so

	acked, durable uint64 // writes and trims acknowledged; those of them known to be durable
	lost           bool

	ready     bool // attached: identified, opened, flush learnt
	refusal   error
	refusedAt time.Duration
	stats     Stats
}

// NewCore makes the state machine; links come with SetLink. It allocates the small frames.
func NewCore(now time.Duration, cfg CoreConfig) (*Core, error) {
	if cfg.PoolMax == 0 {
		cfg.PoolMax = DefaultPoolMax
	}
	if cfg.PoolMax < 2 || cfg.PoolMax > maxWindow {
		return nil, fmt.Errorf("new core %s: pool ceiling %d is not within 2 and %d", cfg.Addr, cfg.PoolMax, maxWindow)
	}
	if cfg.Addr.IsWild() {
		return nil, fmt.Errorf("new core %s: address is no target's", cfg.Addr)
	}
	if len(cfg.Generation) != 0 && len(cfg.Generation) != len(aoe.Generation{}) {
		return nil, fmt.Errorf("new core %s: generation %q is not %d characters", cfg.Addr, cfg.Generation, len(aoe.Generation{}))
	}
	control, err := pool.New(pool.Config{FrameSize: controlFrameSize, Initial: 2 * maxPaths, Max: 8 * maxPaths})
	if err != nil {
		return nil, fmt.Errorf("new core %s: %w", cfg.Addr, err)
	}
	c := &Core{
		cfg: cfg, now: now, next: now, control: control, lost: cfg.Lost,
		out:  make([]Transmit, 0, 4*cfg.PoolMax),
		redo: make([]span, 0, 4*cfg.PoolMax), copies: newCopies(cfg.Batch, 2*cfg.PoolMax),
	}
	c.table.init(cfg.PoolMax)
	c.table.restart(cfg.FirstCounter, foreignCounters, tableSlots)
	c.session.incarnation = cfg.Incarnation
	c.session.cacheEpoch, c.session.cacheKnown = cfg.CacheEpoch, cfg.CacheEpoch != 0
	c.session.admission = cfg.Admission
	if cfg.Recovered {
		c.holds.everything(now + duplicateLifetime)
		c.acked = 1 // what the earlier process had acknowledged and not flushed
	}
	c.query.interval = queryFirst
	return c, nil
}

// SetLink adds a link or changes what is known of it.
func (c *Core) SetLink(now time.Duration, id LinkID, info LinkInfo) {
	c.enter(now)
	for len(c.links) <= int(id) {
		c.links = append(c.links, coreLink{})
	}
	known := c.links[id].present
	moved := known && c.links[id].MAC != info.MAC // answers to frames with the old address come to nobody
	c.links[id] = coreLink{LinkInfo: info, present: true}
	for i := range c.paths {
		p := &c.paths[i]
		switch {
		case p.used && (p.link == id && moved || !c.usable(p.link)):
			c.dropPath(p)
		case p.used && p.link == id:
			c.resize(p)
		}
	}
	if !known || moved {
		c.query.interval = queryFirst
		c.query.at = now
		c.wake(now)
	}
	c.leave()
}

// DropLink forgets a link and its paths; what was sent over it goes over other paths.
func (c *Core) DropLink(now time.Duration, id LinkID) {
	c.enter(now)
	if int(id) < len(c.links) && c.links[id].present {
		c.links[id] = coreLink{}
		for i := range c.paths {
			if p := &c.paths[i]; p.used && p.link == id {
				c.dropPath(p)
			}
		}
		c.query.interval, c.query.at = queryFirst, now
		c.wake(now)
	}
	c.leave()
}

// usable says whether a link may be used: there, and not beside a local one.
func (c *Core) usable(id LinkID) bool {
	l := &c.links[id]
	if !l.present || l.Local {
		return l.present
	}
	for i := range c.links {
		if c.links[i].present && c.links[i].Local {
			return false
		}
	}
	return true
}

// Submit takes a request; its Data are borrowed until Complete. A wrong request completes with an error.
func (c *Core) Submit(now time.Duration, r *Request) {
	c.enter(now)
	if c.pending == 0 {
		c.progress = c.now
	}
	c.pending++
	if r.Op == OpFlush {
		r.Sectors = 0
	}
	r.Err, r.framed, r.left, r.held = c.refuse(r), 0, r.units(), false
	switch {
	case r.Err != nil, r.Op == OpFlush && !c.info().Flush:
		c.done.push(r)
	default:
		c.waiting.push(r)
		if c.cfg.DeadTime > 0 {
			c.wake(c.progress + c.cfg.DeadTime)
		}
	}
	c.leave()
}

// refuse says why a request fails at once, if it does.
func (c *Core) refuse(r *Request) error {
	switch {
	case c.closed:
		return ErrClosed
	case c.dead:
		return ErrDead
	case c.session.refused != nil:
		return c.session.refused
	case c.lostTo(r):
		return ErrLost
	case r.Op == OpFlush:
		return nil
	case r.modifies() && c.cfg.ReadOnly:
		return ErrReadOnly
	case r.Sectors == 0, r.LBA+uint64(r.Sectors) > c.identity.info.Sectors, r.LBA+uint64(r.Sectors) < r.LBA:
		return ErrIO
	case r.Op == OpTrim && !c.identity.info.Trim, r.FUA && !c.identity.info.FUA:
		return ErrUnsupported
	case !r.fits():
		return ErrIO
	}
	return nil
}

// Tick does what is due.
func (c *Core) Tick(now time.Duration) {
	c.enter(now)
	c.next = never
	c.tickQuery()
	c.tickPaths()
	c.tickSession()
	c.tickTable()
	c.tickDead()
	c.holds.expire(c.now)
	c.retryHeld()
	c.watchStall()
	c.leave()
}

// watchStall notices that data cannot flow, but not each moment in which a path just proves itself.
func (c *Core) watchStall() {
	switch {
	case !c.ready || c.flowing() && c.anyUp():
		c.changed = c.changed || c.stalled
		c.downAt, c.stalled = 0, false
	case c.downAt == 0:
		c.downAt = max(c.now, 1)
		c.wake(c.downAt + stallGrace)
	case c.now-c.downAt >= stallGrace:
		c.changed = c.changed || !c.stalled
		c.stalled = true
	default:
		c.wake(c.downAt + stallGrace)
	}
}

// Next is when Tick has to be called at the latest.
func (c *Core) Next() time.Duration { return c.next }

// Transmits returns what is to be sent since the last call. The slice is good until the next call of any method; the holds are the
// caller's.
func (c *Core) Transmits() []Transmit {
	for len(c.copies.transfers) > 0 { // a write that cannot be sent may have another one sent
		c.Settle(c.now)
	}
	out := c.out
	c.out = c.out[:0]
	return out
}

// sending says whether there are Transmits.
func (c *Core) sending() bool { return len(c.out) > 0 }

// Fail gives up all requests with err; it returns when all have been completed.
func (c *Core) Fail(now time.Duration, err error) {
	c.enter(now)
	c.failAll(err)
	c.leave()
}

// Pending is how many requests are not completed.
func (c *Core) Pending() int { return c.pending }

// enter begins every call.
func (c *Core) enter(now time.Duration) {
	if now > c.now {
		c.now = now
	}
}

// leave ends every call: it frames what can be sent and tells completions, from which Submit may be called.
func (c *Core) leave() {
	if c.leaving {
		return
	}
	c.leaving = true
	for {
		c.pump()
		if c.done.empty() {
			break
		}
		for !c.done.empty() {
			r := c.done.pop()
			if r.staged > 0 { // a write that failed before its data were fetched
				c.settle()
			}
			c.pending--
			c.account(r)
			r.Done.Complete(r)
		}
	}
	if c.changed {
		c.watchStall()
	}
	c.leaving = false
	if checked {
		c.check()
	}
}

// wake makes sure that Tick is called at t.
func (c *Core) wake(t time.Duration) { c.next = min(c.next, t) }

// account counts a request that is done.
func (c *Core) account(r *Request) {
	if r == &c.flush.request {
		return
	}
	if r.Err != nil {
		c.stats.Errors++
		return
	}
	switch r.Op {
	case OpRead:
		c.stats.Reads++
		c.stats.ReadBytes += uint64(r.Sectors) * aoe.SectorSize
	case OpWrite:
		c.stats.Writes++
		c.stats.WriteBytes += uint64(r.Sectors) * aoe.SectorSize
	case OpFlush:
		c.stats.Flushes++
	case OpTrim:
		c.stats.Trims++
	}
}

// tickDead gives up when the dead time has passed without an answer.
func (c *Core) tickDead() {
	if c.cfg.DeadTime <= 0 || c.pending == 0 {
		return
	}
	if c.now-c.progress < c.cfg.DeadTime {
		c.wake(c.progress + c.cfg.DeadTime)
		return
	}
	c.dead, c.changed = true, true
	c.failAll(ErrDead)
	for i := range c.paths {
		if p := &c.paths[i]; p.used && p.phase == pathUp {
			c.verify(p, true)
		}
	}
}

// failAll completes every request with err. Frames of writes may still be on the wire: nothing may overtake them.
func (c *Core) failAll(err error) {
	c.settle()
	abandoned := false
	for i := range c.table.entries {
		e := &c.table.entries[i]
		if e.req == nil {
			continue
		}
		abandoned = abandoned || e.req.modifies()
		c.abandon(e, err)
	}
	for _, s := range c.redo {
		c.answered(s.req, s.units(), err)
	}
	c.redo = c.redo[:0]
	c.waiting.prepend(&c.held)
	for !c.waiting.empty() {
		r := c.waiting.pop()
		c.answered(r, r.units()-r.framed, err)
	}
	if abandoned && c.session.state == sessionOpen {
		c.reopen()
	}
}
