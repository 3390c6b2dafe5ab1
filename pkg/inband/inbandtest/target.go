package inbandtest

import (
	"maps"
	"slices"
	"sync"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Target is a simulated one. Set what is exported before it is served; afterwards use its methods.
type Target struct {
	Addr    aoe.Addr
	Sectors uint64
	Serial  string
	Model   string // empty: vblade's
	// NoReserve, NoMask and NoWrite: the command is not answered.
	NoReserve, NoMask, NoWrite bool

	mu       sync.Mutex // guards what follows
	down     bool
	config   string
	reserved []aoe.MAC
	disk     map[uint64][aoe.SectorSize]byte // sectors that are not zero
	durable  map[uint64][aoe.SectorSize]byte // the same, at the last flush
	deafFrom uint64
}

// Restart forgets what vblade forgets.
func (t *Target) Restart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.config, t.reserved = "", nil
}

// SetDown makes the target silent, or not.
func (t *Target) SetDown(down bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down = down
}

// Config returns the config string.
func (t *Target) Config() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.config
}

// SetConfig sets the config string behind everybody's back.
func (t *Target) SetConfig(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.config = text
}

// Reserved returns the reservation.
func (t *Target) Reserved() []aoe.MAC {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.reserved)
}

// SetReserved sets the reservation behind everybody's back.
func (t *Target) SetReserved(macs ...aoe.MAC) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserved = slices.Clone(macs)
}

// Put writes a byte into a sector.
func (t *Target) Put(lba uint64, b byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.store(lba, [aoe.SectorSize]byte{b})
}

// Used is how many sectors are not zero.
func (t *Target) Used() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.disk)
}

// Flush makes durable what is on the disk.
func (t *Target) Flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.durable = maps.Clone(t.disk)
}

// CutPower loses what was not flushed. The config string stays.
func (t *Target) CutPower() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disk = maps.Clone(t.durable)
}

// SetDeafFrom has reads and writes from a sector on not answered; 0: all are.
func (t *Target) SetDeafFrom(lba uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deafFrom = lba
}

func (t *Target) store(lba uint64, sector [aoe.SectorSize]byte) {
	if t.disk == nil {
		t.disk = map[uint64][aoe.SectorSize]byte{}
	}
	if sector == [aoe.SectorSize]byte{} {
		delete(t.disk, lba)
		return
	}
	t.disk[lba] = sector
}

// answer writes the answer to a request into out and returns its length; 0 is silence.
func (t *Target) answer(out []byte, f aoe.Frame, mac aoe.MAC, mtu int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		return 0
	}
	switch f.Command() {
	case aoe.CommandConfig:
		return t.answerConfig(out, f, mac, mtu)
	case aoe.CommandReserve:
		if !t.NoReserve {
			return t.answerReserve(out, f, mac)
		}
	case aoe.CommandMACMask:
		if !t.NoMask {
			h := t.header(f, mac)
			return aoe.PutMACMask(out, &h, aoe.MaskRead, nil)
		}
	case aoe.CommandATA:
		return t.answerATA(out, f, mac, mtu)
	default:
		return aoe.PutReply(out, f, mac, t.Addr, aoe.ErrorCommand)
	}
	return 0
}

func (t *Target) header(f aoe.Frame, mac aoe.MAC) aoe.Header {
	return aoe.Header{Dst: f.Src(), Src: mac, Response: true, Addr: t.Addr, Tag: f.Tag()}
}

func (t *Target) answerConfig(out []byte, f aoe.Frame, mac aoe.MAC, mtu int) int {
	c, err := f.Config()
	if err != nil {
		return 0
	}
	text, err := c.ConfigString()
	if err != nil && c.Command() != aoe.ConfigRead {
		return 0
	}
	h := t.header(f, mac)
	switch {
	case c.Command() == aoe.ConfigForceSet, c.Command() == aoe.ConfigSet && t.config == "":
		t.config = string(text)
	case c.Command() == aoe.ConfigSet && t.config != string(text):
		h.Error = aoe.ErrorConfigSet
	}
	return aoe.PutConfig(out, &h, &aoe.ConfigFields{
		BufferCount: 16, Firmware: 0x4019, SectorCount: uint8(aoe.MaxSectors(mtu)), Command: c.Command(), ConfigString: []byte(t.config),
	})
}

func (t *Target) answerReserve(out []byte, f aoe.Frame, mac aoe.MAC) int {
	r, err := f.Reserve()
	if err != nil {
		return 0
	}
	h := t.header(f, mac)
	switch {
	case r.Command() == aoe.ReserveSet && len(t.reserved) > 0 && !slices.Contains(t.reserved, f.Src()):
		h.Error = aoe.ErrorReserved
	case r.Command() != aoe.ReserveRead:
		t.reserved = t.reserved[:0]
		for i := range r.Count() {
			t.reserved = append(t.reserved, r.MAC(i))
		}
	}
	return aoe.PutReserve(out, &h, r.Command(), t.reserved)
}

func (t *Target) answerATA(out []byte, f aoe.Frame, mac aoe.MAC, mtu int) int {
	a, err := f.ATA()
	if err != nil {
		return 0
	}
	refused := len(t.reserved) > 0 && !slices.Contains(t.reserved, f.Src())
	switch {
	case a.Command() == aoe.ATAIdentify:
		n := aoe.PutATAReply(out, f, mac, t.Addr, aoe.StatusDRDY, 0)
		model := t.Model
		if model == "" {
			model = "Coraid EtherDrive vblade"
		}
		aoe.PutIdentify(out[n:], &aoe.IdentifyFields{Serial: t.Serial, Model: model, Firmware: "V25", Sectors: t.Sectors, Flush: true})
		return n + aoe.IdentifyLen
	case t.deafFrom > 0 && a.LBA() >= t.deafFrom:
		return 0
	case refused:
		return aoe.PutReply(out, f, mac, t.Addr, aoe.ErrorReserved)
	case a.Sectors() > aoe.MaxSectors(mtu):
		return aoe.PutReply(out, f, mac, t.Addr, aoe.ErrorArgument)
	case (a.Command().IsRead() || a.Command().IsWrite()) && a.LBA()+uint64(a.Sectors()) > t.Sectors:
		return aoe.PutATAReply(out, f, mac, t.Addr, aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrIDNF)
	case a.Command().IsRead():
		n := aoe.PutATAReply(out, f, mac, t.Addr, aoe.StatusDRDY, 0)
		for i := range a.Sectors() {
			sector := t.disk[a.LBA()+uint64(i)]
			n += copy(out[n:], sector[:])
		}
		return n
	case a.Command().IsWrite() && t.NoWrite:
		return 0
	case a.Command().IsWrite():
		data, err := a.Payload(a.Sectors())
		if err != nil {
			return aoe.PutReply(out, f, mac, t.Addr, aoe.ErrorArgument)
		}
		for i := range a.Sectors() {
			t.store(a.LBA()+uint64(i), [aoe.SectorSize]byte(data[i*aoe.SectorSize:]))
		}
		return aoe.PutATAReply(out, f, mac, t.Addr, aoe.StatusDRDY, 0)
	case a.Command() == aoe.ATAFlush, a.Command() == aoe.ATAFlushExt:
		t.durable = maps.Clone(t.disk)
		return aoe.PutATAReply(out, f, mac, t.Addr, 0, 0)
	}
	return aoe.PutATAReply(out, f, mac, t.Addr, aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrABRT)
}
