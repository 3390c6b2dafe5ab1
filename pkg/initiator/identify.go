package initiator

import (
	"errors"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// identityPrefix begins the config string of a volume of ours; the generation follows.
const identityPrefix = "aoe-csi:"

// identity is who the target has proved to be.
type identity struct {
	known      bool
	generation string // empty: the target is not ours
	lba48      bool
	info       Info
	raw        [aoe.IdentifyLen]byte // as it was at first
	seen       uint64                // how often a path has proved it
}

func (c *Core) info() *Info { return &c.identity.info }

// Parts of IDENTIFY data in bytes that make an identity when nothing better is known: serial number and model.
const (
	serialFrom, serialTo = 20, 40
	modelFrom, modelTo   = 54, 94
)

// matches says whether the data may be the volume's. A foreign target's serial number cannot be set: there the claim in its config string,
// asked for just before the data, says whose it is.
func (c *Core) matches(p *path, id aoe.Identify) bool {
	if g := c.cfg.Generation; g != "" && !id.HasSerial(g) && !p.claimed {
		return false
	}
	if !c.identity.known {
		return true
	}
	first := c.identity.raw[:]
	return string(first[serialFrom:serialTo]) == string(id[serialFrom:serialTo]) &&
		string(first[modelFrom:modelTo]) == string(id[modelFrom:modelTo])
}

// onIdentify takes a path's proof, or its failure.
func (c *Core) onIdentify(p *path, id aoe.Identify) {
	if !c.matches(p, id) || !id.ChecksumValid() {
		c.bad(p, ErrIdentity)
		return
	}
	p.proven, p.proveAt, p.message = c.now, c.now+reproveEvery, nil
	c.wake(p.proveAt)
	c.identity.seen++
	if !c.identity.known && !c.adopt(p, id) {
		return
	}
	if s := id.Sectors(); s > c.identity.info.Sectors { // never smaller: an answer from before the growth may come late
		c.identity.info.Sectors = s
		c.changed = true
	}
	switch {
	case p.phase == pathUp:
		if p.limit < p.wanted {
			c.startSize(p) // what did not get through once may now
		}
	case c.flowing():
		c.admit(p)
	default:
		p.phase = pathIdentified
		c.advance()
	}
}

// admit lets a path that has proved the identity carry data, once full frames have got through.
func (c *Core) admit(p *path) {
	if p.needSize || p.limit == 0 {
		p.phase = pathSizing
		c.startSize(p)
		return
	}
	c.pathUp(p)
}

// pathUp lets data flow over a path.
func (c *Core) pathUp(p *path) {
	p.phase, p.needSize, p.message = pathUp, false, nil
	p.backoff, p.timeouts = 0, 0
	c.dead, c.changed = false, true
	c.learnFlush()
	c.retryHeld()
}

// adopt takes the first proof as what all others are measured by, and makes the pool that fits.
func (c *Core) adopt(p *path, id aoe.Identify) bool {
	if !c.makePool(p) {
		return false
	}
	d := &c.identity
	copy(d.raw[:], id)
	d.known, d.lba48 = true, id.LBA48()
	if rest, ok := strings.CutPrefix(p.configString, identityPrefix); ok && len(rest) == len(aoe.Generation{}) {
		d.generation = rest
	}
	d.info = Info{
		Addr: c.cfg.Addr, Sectors: id.Sectors(), Serial: id.Serial(), Model: id.Model(), Firmware: id.Firmware(),
		PhysicalBlock: uint32(id.PhysicalSectorSize()), Rotational: id.Rotational(),
		FUA: id.FUA() && id.LBA48(), Trim: id.Trim() && id.LBA48(), TrimZeroes: id.TrimZeroes(), ConfigString: p.configString,
	}
	c.changed = true
	return true
}

// poolMemory bounds in bytes what a device's pool begins with, which matters where frames are long: on the local socket.
const poolMemory = 2 << 20

// makePool allocates the data frames: as many as the target can hold, as long as the longest frame on any of the links.
func (c *Core) makePool(p *path) bool {
	sectors := 2
	for i := range c.links {
		if c.links[i].present {
			sectors = max(sectors, aoe.MaxSectors(c.links[i].MTU))
		}
	}
	size := aoe.ATALen + sectors*aoe.SectorSize
	window := min(p.ceiling(), poolMemory/size)
	data, err := pool.New(pool.Config{FrameSize: size, Initial: window, Max: c.cfg.PoolMax, Reserve: window})
	if err != nil {
		c.refuseAttach(err)
		c.dropPath(p) // the next query finds it again; memory may have come back
		return false
	}
	c.data, c.frameSize = data, size
	return true
}

// flushSupport is how data are made durable at this target.
type flushSupport struct {
	core    *Core
	command aoe.ATACommand
	request Request // the question whether the command works
}

// learnFlush finds out, when the first path is up, which flush the target has, and completes the attachment. A target of ours says so
// itself: asking it could meet a flush error that it keeps for us, and take that for "no flush". Of others the claims are worth nothing;
// vblade answers without doing anything.
func (c *Core) learnFlush() {
	f := &c.flush
	if c.ready || f.core != nil {
		return
	}
	f.core = c
	id := aoe.Identify(c.identity.raw[:])
	switch {
	case c.session.state == sessionOpen && id.FlushExt():
		c.flushLearnt(aoe.ATAFlushExt)
	case c.session.state == sessionOpen && id.Flush():
		c.flushLearnt(aoe.ATAFlush)
	case c.session.state == sessionOpen, strings.Contains(strings.ToLower(c.identity.info.Model), "vblade"):
		c.flushLearnt(0)
	case c.identity.lba48:
		f.ask(aoe.ATAFlushExt)
	default:
		f.ask(aoe.ATAFlush)
	}
}

// ask submits a flush as a question.
func (f *flushSupport) ask(command aoe.ATACommand) {
	f.command = command
	f.request = Request{Op: OpFlush, Done: f, left: 1}
	if f.core.pending == 0 {
		f.core.progress = f.core.now
	}
	f.core.pending++
	f.core.waiting.push(&f.request)
}

// Complete implements Completer for the question. Any outcome but "unsupported" means that there is such a command.
func (f *flushSupport) Complete(r *Request) {
	switch {
	case errors.Is(r.Err, ErrUnsupported) && f.command == aoe.ATAFlushExt:
		f.ask(aoe.ATAFlush)
	case errors.Is(r.Err, ErrUnsupported):
		f.core.flushLearnt(0)
	case r.Err == nil || f.core.lost:
		f.core.flushLearnt(f.command)
	default: // given up: asked again at the next path
		f.core.refuseAttach(r.Err)
		f.core = nil
	}
}

// flushLearnt completes the attachment; command 0 means that the target has no flush.
func (c *Core) flushLearnt(command aoe.ATACommand) {
	c.flush.command = command
	c.identity.info.Flush = command != 0
	c.identity.info.FUA = c.identity.info.FUA && command != 0
	c.ready, c.refusal, c.changed = true, nil, true
}
