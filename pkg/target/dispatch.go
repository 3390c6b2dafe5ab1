package target

import (
	"bytes"
	"errors"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// What a target says about itself in every config response.
const (
	// BufferCount is how many frames an initiator may have outstanding; the queues hold more, for several of them.
	BufferCount = 64
	// FirmwareVersion is ours to number.
	FirmwareVersion = 1
)

// handle judges one received frame, which it borrows, and answers it or hands it to a LUN. It never fails: garbage is
// counted.
func (p *port) handle(raw []byte) {
	f, err := aoe.ParseFrame(raw)
	if err != nil && !errors.Is(err, aoe.ErrVersion) {
		p.malformed(raw, err)
		return
	}
	if f.IsResponse() || f.Src().IsMulticast() || !p.isFor(f.Dst()) {
		return
	}
	addr := f.Addr()
	if addr.Shelf != p.shelf.number && addr.Shelf != aoe.AnyShelf {
		return
	}
	if err == nil && f.Command() == aoe.CommandConfig {
		p.config(f)
		return
	}
	if err == nil && f.Command() == aoe.CommandOpen && addr.Slot == aoe.AnySlot {
		p.answerProbe(f)
		return
	}
	// What reads or changes a LUN must name it: a wildcard would hit all of them.
	l := p.shelf.at(addr.Slot)
	if l == nil || addr.IsWild() {
		return
	}
	switch {
	case err != nil:
		p.refuse(l, f, aoe.ErrorVersion)
	case f.Command() == aoe.CommandATA:
		p.ata(l, f)
	case f.Command() == aoe.CommandOpen, f.Command() == aoe.CommandMACMask, f.Command() == aoe.CommandReserve:
		p.request(l, f)
	default:
		p.refuse(l, f, aoe.ErrorCommand)
	}
}

// isFor says whether a destination means this port. The local socket has no address of its own that initiators know.
func (p *port) isFor(dst aoe.MAC) bool {
	return dst == p.mac || dst == aoe.Broadcast || p.mac == aoe.MAC{}
}

// refuse answers an AoE error to a sender for whom the LUN exists; others hear nothing.
func (p *port) refuse(l *lun, f aoe.Frame, code aoe.ErrorCode) {
	l.mu.Lock()
	visible := l.visible(f.Src())
	l.mu.Unlock()
	if !visible {
		p.shelf.counts.refused.Add(1)
		return
	}
	if j := p.take(f); j != nil {
		j.lun = l
		j.refuse(code)
		p.emit(j)
	}
}

// config answers Query Config, of one LUN or of all that match.
func (p *port) config(f aoe.Frame) {
	c, err := f.Config()
	if err != nil {
		p.malformed(f, err)
		return
	}
	slot := f.Addr().Slot
	if slot != aoe.AnySlot {
		if l := p.shelf.at(slot); l != nil {
			p.configOf(l, f, c)
		}
		return
	}
	for slot := range maxSlots {
		if l := p.shelf.at(uint8(slot)); l != nil {
			p.configOf(l, f, c)
		}
	}
}

// configOf answers for one LUN: reads and tests at once, sets through the LUN's clerk.
func (p *port) configOf(l *lun, f aoe.Frame, c aoe.Config) {
	switch c.Command() {
	case aoe.ConfigRead, aoe.ConfigTest, aoe.ConfigPrefix:
	case aoe.ConfigSet, aoe.ConfigForceSet:
		p.request(l, f)
		return
	default:
		p.refuse(l, f, aoe.ErrorArgument)
		return
	}
	operand, err := c.ConfigString()
	if err != nil && c.Command() != aoe.ConfigRead {
		p.malformed(f, err)
		return
	}
	j := p.take(f)
	if j == nil {
		return
	}
	j.lun = l
	l.mu.Lock()
	if l.visible(j.src) && matches(c.Command(), l.config, operand) {
		j.putConfig(c.Command(), aoe.NoError)
		j.rules = l.rules
	}
	l.mu.Unlock()
	p.emit(j)
}

// matches says whether a read or test is to be answered.
func matches(c aoe.ConfigCommand, have, operand []byte) bool {
	switch c {
	case aoe.ConfigTest:
		return bytes.Equal(have, operand)
	case aoe.ConfigPrefix:
		return bytes.HasPrefix(have, operand)
	default:
		return true
	}
}

// putConfig makes the answer a config response with the LUN's string. The caller holds the LUN's mu.
func (j *job) putConfig(c aoe.ConfigCommand, code aoe.ErrorCode) {
	h := aoe.Header{
		Dst: j.src, Src: j.port.mac, Response: true, Error: code, Addr: j.lun.addr(), Tag: j.request().Tag(),
	}
	j.reply = aoe.PutConfig(j.frame.Buf(), &h, j.port.configFields(j.lun, c))
}

// configFields is what a LUN says about itself on this port. The caller holds the LUN's mu.
func (p *port) configFields(l *lun, c aoe.ConfigCommand) *aoe.ConfigFields {
	return &aoe.ConfigFields{
		BufferCount: BufferCount, Firmware: FirmwareVersion, SectorCount: uint8(p.sectors), Command: c, ConfigString: l.config,
	}
}

// request hands a frame to the LUN's clerk: it waits for the disk.
func (p *port) request(l *lun, f aoe.Frame) {
	j := p.take(f)
	if j == nil {
		return
	}
	j.lun = l
	l.mu.Lock()
	lent := !l.closed && p.lend(j, l.requests)
	l.mu.Unlock()
	if !lent {
		p.emit(j)
	}
}
