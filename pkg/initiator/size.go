package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// sizeTries is how often a frame of one size is sent before it is taken not to get through.
const sizeTries = 3

// sizeProbe finds the largest frame that gets through in both directions: a switch that drops jumbo frames does not say so.
type sizeProbe struct {
	top     int // sectors wanted
	sectors int // asked now
	arrived int // a smaller size that got through when larger ones seemed lost; 0: none
}

// smaller is the next size to try below sectors.
func smaller(sectors int) int {
	for _, s := range [...]int{128, 64, 32, 16, 8, 2, 1} {
		if s < sectors {
			return s
		}
	}
	return 1
}

// startSize begins with the largest frame there should be room for. On a path that is up, data go on meanwhile.
func (c *Core) startSize(p *path) {
	if p.ctl.kind != controlNone {
		c.endControl(&p.ctl)
	}
	c.resize(p)
	top := int(min(uint64(p.wanted), max(c.identity.info.Sectors, 1)))
	p.probe = sizeProbe{top: top, sectors: top}
	c.sendSize(p)
}

// sendSize asks for the first sectors of the disk with a request just as long as the answer, the extra bytes being zero. Nothing becomes
// of the data.
func (c *Core) sendSize(p *path) {
	if c.session.state == sessionOpen && !c.table.room() {
		if p.phase == pathUp {
			return // asked again at the next proof
		}
		c.reopen()
		return
	}
	f := c.data.Get()
	if f == nil {
		f = c.data.GetReserve()
	}
	if f == nil {
		c.wake(c.now + 10*time.Millisecond)
		return
	}
	tag := aoe.MakeTag(c.cfg.Shard, c.session.epoch, c.table.counter())
	n := p.probe.sectors
	h := c.header(p, tag)
	fields := aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, Sectors: uint8(n)}
	if !c.identity.lba48 {
		fields.Flags, fields.Command, fields.Device = 0, aoe.ATARead, lbaMode
	}
	b := f.Buf()[:aoe.ATALen+n*aoe.SectorSize]
	clear(b[aoe.ATALen:])
	aoe.PutATA(b, &h, &fields)
	f.SetLen(len(b))
	c.startControl(&p.ctl, controlSize, p, tag, f)
}

// onSize takes the answer to a size probe.
func (c *Core) onSize(p *path, f aoe.Frame) bool {
	k := p.ctl
	if f.IsError() {
		p.heardFrom(c.now)
		c.endControl(&p.ctl)
		c.sizeRefused(p, f.ErrorCode())
		return true
	}
	ata, err := f.ATA()
	if err != nil {
		return false
	}
	failed := aoe.StatusFailed(ata.Status())
	if _, err := ata.Payload(p.probe.sectors); err != nil && !failed {
		return false
	}
	if k.tries == 1 {
		p.measure(c.now - k.sentAt)
	}
	p.heardFrom(c.now)
	c.endControl(&p.ctl)
	if failed && ata.Error()&aoe.ATAErrABRT != 0 && p.probe.sectors > 2 {
		c.sizeRefused(p, aoe.ErrorArgument) // ggaoed's way to say too many
		return true
	}
	c.sizeArrived(p)
	return true
}

// sizeRefused takes the target's refusal of a size probe.
func (c *Core) sizeRefused(p *path, code aoe.ErrorCode) {
	switch {
	case p.phase == pathUp:
	case code == aoe.ErrorArgument && p.probe.sectors > 1:
		less := smaller(p.probe.sectors)
		p.probe = sizeProbe{top: less, sectors: less}
		c.sendSize(p)
	case code == aoe.ErrorUnavailable && c.session.state != sessionForeign:
		p.phase = pathIdentified
		if c.session.state == sessionOpen {
			c.reopen()
		}
	default: // reserved, or unavailable without a session: requests will be told
		c.sizeArrived(p)
	}
}

// sizeArrived takes a size that gets through. If larger ones did not, the target was perhaps just away: they have another chance.
func (c *Core) sizeArrived(p *path) {
	probe := &p.probe
	switch {
	case p.phase == pathUp:
		p.limit = max(p.limit, min(probe.sectors, p.wanted))
	case probe.sectors < probe.top && probe.arrived == 0:
		probe.arrived, probe.sectors = probe.sectors, probe.top
		c.sendSize(p)
	default:
		p.limit = probe.sectors
		c.pathUp(p)
	}
}

// sizeLost takes a size that does not get through.
func (c *Core) sizeLost(p *path) {
	probe := &p.probe
	less := smaller(probe.sectors)
	switch {
	case p.phase == pathUp:
	case probe.arrived > 0 && less <= probe.arrived:
		p.limit = probe.arrived
		c.pathUp(p)
	case probe.sectors > 1:
		probe.sectors = less
		c.sendSize(p)
	default:
		c.verify(p, true)
	}
}
