package initiator

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const testGeneration = "abcdefghijklmnop"

var (
	testAddr  = aoe.Addr{Shelf: 7, Slot: 3}
	testUUID  = aoe.UUID{1, 2, 3}
	ourMAC    = aoe.MAC{0x02, 0, 0, 0, 0, 1}
	ourMAC2   = aoe.MAC{0x02, 0, 0, 0, 0, 2}
	targetMAC = aoe.MAC{0x02, 0, 0, 0, 0, 0x77}
)

// modelTarget is a target as a test wants it: simple, in memory, and by its nature right about what it executes.
type modelTarget struct {
	t      testing.TB
	link   link.Link
	frames *pool.Pool
	dice   *rand.Rand

	// How it is.
	managed  bool // knows sessions
	model    string
	serial   string
	config   string
	flush    []aoe.ATACommand // that it serves
	buffers  uint16
	sectors  uint8         // most in a frame
	service  time.Duration // up to this passes before a request is executed
	disk     []byte
	admitted bool
	// admission is the number of the one in force.
	admission uint32
	mac       aoe.MAC
	local     bool // the peer may go away

	// What it is in the middle of.
	off         bool // answers nothing and forgets what it has queued
	refuse      aoe.ErrorCode
	fail        uint8 // ATA status of data commands
	cacheEpoch  uint64
	epoch       uint8
	lastEpoch   uint8 // persisted
	incarnation uint64
	seen        map[uint32]bool // counters of the session
	queue       []job
	executed    int // writes
	flushes     int
	seenFrames  int
	closes      int
}

type job struct {
	at    time.Duration
	frame []byte
}

func newModelTarget(t testing.TB, l link.Link, seed uint64) *modelTarget {
	frames, err := pool.New(pool.Config{FrameSize: l.MTU() + aoe.EthernetLen, Initial: 16, Max: 4096})
	if err != nil {
		t.Fatal(err)
	}
	return &modelTarget{
		t: t, link: l, frames: frames, dice: rand.New(rand.NewPCG(seed, 1)),
		managed: true, model: "aoe-csi", serial: testGeneration, config: identityPrefix + testGeneration,
		flush: []aoe.ATACommand{aoe.ATAFlush, aoe.ATAFlushExt}, buffers: 16, sectors: 255,
		disk: make([]byte, 1<<20), admitted: true, admission: 7, mac: targetMAC, cacheEpoch: 1, seen: map[uint32]bool{},
	}
}

// asVblade makes it one that knows no sessions and does not flush.
func (m *modelTarget) asVblade() {
	m.managed, m.model, m.serial, m.config = false, "Coraid EtherDrive vblade", "7.3:host", ""
	m.flush = []aoe.ATACommand{aoe.ATAFlush}
}

// restart loses what was queued and the session; with loss what was not flushed may be gone, too.
func (m *modelTarget) restart(loss bool) {
	m.queue, m.off, m.epoch = nil, false, 0
	if loss {
		m.cacheEpoch++
	}
}

// poll takes frames and executes what is due.
func (m *modelTarget) poll(now time.Duration) {
	var frames [64][]byte
	for {
		n, err := m.link.Receive(frames[:])
		if err != nil && m.local {
			return
		}
		if err != nil {
			m.t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for _, b := range frames[:n] {
			m.seenFrames++
			if !m.off {
				m.queue = append(m.queue, job{at: now + m.delay(), frame: bytes.Clone(b)})
			}
		}
	}
	for i := 0; i < len(m.queue); {
		if j := m.queue[i]; j.at <= now {
			m.queue = append(m.queue[:i], m.queue[i+1:]...)
			m.serve(j.frame)
			continue
		}
		i++
	}
}

func (m *modelTarget) delay() time.Duration {
	if m.service == 0 {
		return 0
	}
	return time.Duration(m.dice.Int64N(int64(m.service)))
}

// next is when poll has something to do.
func (m *modelTarget) next() time.Duration {
	at := never
	for _, j := range m.queue {
		at = min(at, j.at)
	}
	return at
}

// serve answers one frame.
func (m *modelTarget) serve(b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil {
		m.t.Fatalf("the core sent %x: %v", b, err)
	}
	if f.IsResponse() || !f.Addr().Matches(testAddr) {
		return
	}
	if f.Src().IsMulticast() || f.Src() == (aoe.MAC{}) {
		m.t.Fatalf("the core sent from %s", f.Src())
	}
	switch f.Command() {
	case aoe.CommandConfig:
		m.reply(func(out []byte) int {
			h := aoe.Header{Dst: f.Src(), Src: m.mac, Response: true, Addr: testAddr, Tag: f.Tag()}
			return aoe.PutConfig(out, &h, &aoe.ConfigFields{BufferCount: m.buffers, SectorCount: m.sectors, ConfigString: []byte(m.config)})
		})
	case aoe.CommandOpen:
		m.serveOpen(f)
	case aoe.CommandATA:
		m.serveATA(f)
	default:
		m.error(f, aoe.ErrorCommand)
	}
}

// advertise says that it is here.
func (m *modelTarget) advertise() {
	m.reply(func(out []byte) int {
		h := aoe.Header{Dst: aoe.Broadcast, Src: m.mac, Response: true, Addr: testAddr}
		return aoe.PutConfig(out, &h, &aoe.ConfigFields{BufferCount: m.buffers, SectorCount: m.sectors, ConfigString: []byte(m.config)})
	})
}

func (m *modelTarget) serveOpen(f aoe.Frame) {
	if !m.managed {
		m.error(f, aoe.ErrorCommand)
		return
	}
	o, err := f.Open()
	if err != nil {
		m.error(f, aoe.ErrorCommand)
		return
	}
	a := aoe.OpenFields{Op: o.Op(), Initiator: o.Initiator(), Incarnation: o.Incarnation(), Generation: o.Generation(), CacheEpoch: m.cacheEpoch, Window: 4096, Admission: m.admission}
	switch {
	case !m.admitted:
		a.Status = aoe.OpenNotAdmitted
	case o.Admission() != 0 && o.Admission() != m.admission:
		a.Status = aoe.OpenOtherAdmission
	case o.Generation() != aoe.Generation([]byte(m.serial)[:16]):
		a.Status = aoe.OpenOtherGeneration
	case o.Op() == aoe.CloseSession:
		m.closes++
		m.epoch = 0
	case o.Incarnation() < m.incarnation:
		a.Status = aoe.OpenStale
	case o.Incarnation() == m.incarnation && m.epoch != 0:
		a.Epoch = m.epoch
	default:
		m.incarnation = o.Incarnation()
		m.lastEpoch = m.lastEpoch%aoe.MaxEpoch + 1
		m.epoch = m.lastEpoch
		m.seen = map[uint32]bool{}
		a.Epoch = m.epoch
	}
	m.reply(func(out []byte) int {
		h := aoe.Header{Dst: f.Src(), Src: m.mac, Response: true, Addr: testAddr, Tag: f.Tag()}
		return aoe.PutOpen(out, &h, &a)
	})
}

func (m *modelTarget) serveATA(f aoe.Frame) {
	ata, err := f.ATA()
	if err != nil {
		m.t.Fatal(err)
	}
	command := ata.Command()
	if command == aoe.ATAIdentify {
		m.identify(f)
		return
	}
	switch {
	case m.refuse != aoe.NoError:
		m.error(f, m.refuse)
		return
	case m.managed && (m.epoch == 0 || aoe.TagEpoch(f.Tag()) != m.epoch):
		m.error(f, aoe.ErrorUnavailable)
		return
	case ata.Sectors() > int(m.sectors):
		m.error(f, aoe.ErrorArgument)
		return
	case m.fail != 0:
		m.ata(f, m.fail, aoe.ATAErrUNC, nil)
		return
	}
	m.execute(f, ata, command)
}

func (m *modelTarget) execute(f aoe.Frame, ata aoe.ATA, command aoe.ATACommand) {
	first, n := int(ata.LBA())*aoe.SectorSize, ata.Sectors()*aoe.SectorSize
	switch {
	case command.IsRead() || command.IsWrite():
		if first+n > len(m.disk) {
			m.ata(f, aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrIDNF, nil)
			return
		}
	}
	switch {
	case command.IsRead():
		m.ata(f, aoe.StatusDRDY, 0, m.disk[first:first+n])
	case command.IsWrite():
		data, err := ata.Payload(ata.Sectors())
		if err != nil {
			m.t.Fatal(err)
		}
		if m.once(f) {
			copy(m.disk[first:], data)
			m.executed++
		}
		m.ata(f, aoe.StatusDRDY, 0, nil)
	case command == aoe.ATADataSetManagement:
		if m.once(f) {
			m.trim(aoe.TrimEntries(ata.Data()[:aoe.SectorSize]))
		}
		m.ata(f, aoe.StatusDRDY, 0, nil)
	default:
		for _, c := range m.flush {
			if c == command {
				m.flushes++
				m.ata(f, 0, 0, nil)
				return
			}
		}
		m.ata(f, aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrABRT, nil)
	}
}

// once says whether a write is to be executed: in a session each counter once, without one always.
func (m *modelTarget) once(f aoe.Frame) bool {
	if !m.managed {
		return true
	}
	counter := aoe.TagCounter(f.Tag())
	if m.seen[counter] {
		return false
	}
	m.seen[counter] = true
	return true
}

func (m *modelTarget) trim(entries aoe.TrimEntries) {
	for i := range entries.Len() {
		lba, n := entries.Entry(i)
		clear(m.disk[lba*aoe.SectorSize : (lba+n)*aoe.SectorSize])
	}
}

func (m *modelTarget) identify(f aoe.Frame) {
	var data [aoe.IdentifyLen]byte
	fields := aoe.IdentifyFields{
		Serial: m.serial, Model: m.model, Firmware: "1", Sectors: uint64(len(m.disk)) / aoe.SectorSize, Flush: true, FUA: m.managed, Physical4K: true,
	}
	if m.managed {
		fields.TrimBlocks = 8
	}
	aoe.PutIdentify(data[:], &fields)
	m.ata(f, aoe.StatusDRDY, 0, data[:])
}

func (m *modelTarget) ata(f aoe.Frame, status, errorRegister uint8, data []byte) {
	m.reply(func(out []byte) int {
		return aoe.PutATAReply(out, f, m.mac, testAddr, status, errorRegister) + copy(out[aoe.ATALen:], data)
	})
}

func (m *modelTarget) error(f aoe.Frame, code aoe.ErrorCode) {
	m.reply(func(out []byte) int {
		aoe.PutReply(out, f, m.mac, testAddr, code)
		return aoe.MinFrameLen
	})
}

// reply sends what put writes.
func (m *modelTarget) reply(put func(out []byte) int) {
	f := m.frames.Get()
	if f == nil {
		m.t.Fatal("model target out of frames")
	}
	defer f.Release()
	clear(f.Buf()[:aoe.MinFrameLen])
	f.SetLen(max(put(f.Buf()), aoe.MinFrameLen))
	if _, err := m.link.Send([]*pool.Frame{f}); err != nil && !m.local {
		m.t.Fatal(err)
	}
}
