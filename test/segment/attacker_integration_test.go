//go:build integration

package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Attacker is a host on the segment that nobody let in, who sees what the others send. Its exported methods are what the test can ask it for.
type Attacker struct {
	macs  []aoe.MAC
	socks []int
	seen  atomic.Pointer[aoe.Frame] // the initiator's newest request
}

// FloodArgs say whom to flood, how fast and for how long.
type FloodArgs struct {
	Target, Initiator, Second aoe.MAC // Second is the initiator's on the other segment
	Duration                  time.Duration
	Rate                      int // frames of each kind, a second
}

// Start brings the interfaces up.
func (p *Attacker) Start(args StartArgs, macs *[]aoe.MAC) (err error) {
	if p.macs, err = setUp(args.Interfaces); err != nil {
		return err
	}
	*macs = p.macs
	for _, name := range args.Interfaces {
		fd, err := openInterface(name)
		if err != nil {
			return err
		}
		p.socks = append(p.socks, fd)
	}
	return nil
}

// openInterface opens a socket that gets and sends AoE frames as they are, whoever they are for.
func openInterface(name string) (int, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, 0x88a2))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index})
}

// kind makes one frame of a sort and says over which interface it goes; nil: nothing to send now.
type kind struct {
	name string
	make func(dice *rand.Rand, b []byte) (frame []byte, over int)
}

// Flood sends frames of all kinds at once and says how many of each were sent.
func (p *Attacker) Flood(args FloodArgs, sent *map[string]uint64) error {
	*sent = map[string]uint64{}
	end := time.Now().Add(args.Duration)
	var group sync.WaitGroup
	var mu sync.Mutex
	var failure error
	group.Go(func() { p.listen(args.Initiator, end) })
	for _, k := range p.kinds(args) {
		group.Go(func() {
			n, err := p.send(k, args.Rate, end)
			mu.Lock()
			defer mu.Unlock()
			(*sent)[k.name] = n
			failure = errors.Join(failure, err)
		})
	}
	group.Wait()
	return failure
}

// listen keeps the initiator's newest request.
func (p *Attacker) listen(initiator aoe.MAC, end time.Time) {
	buf := make([]byte, 1<<16)
	_ = unix.SetsockoptTimeval(p.socks[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}) // a listener that ends late does no harm
	for time.Now().Before(end) {
		n, _, err := unix.Recvfrom(p.socks[0], buf, 0)
		if err != nil {
			continue
		}
		f, err := aoe.ParseFrame(buf[:n])
		if err != nil || f.IsResponse() || f.Src() != initiator || !aoe.IsSession(f.Tag()) {
			continue
		}
		if ata, err := f.ATA(); err != nil || !ata.Command().IsRead() {
			continue // an answer to a read has data, which must not get through
		}
		request := append(aoe.Frame(nil), f...)
		p.seen.Store(&request)
	}
}

// send sends frames of a kind at a rate.
func (p *Attacker) send(k kind, rate int, end time.Time) (n uint64, err error) {
	const batch = 10
	dice := rand.New(rand.NewPCG(uint64(len(k.name)), 3))
	tick := time.NewTicker(time.Second * batch / time.Duration(rate))
	defer tick.Stop()
	b := make([]byte, aoe.EthernetLen+mtu)
	for time.Now().Before(end) {
		for range batch {
			frame, over := k.make(dice, b)
			if frame == nil {
				continue
			}
			err := unix.Sendto(p.socks[over], frame, unix.MSG_DONTWAIT, nil)
			switch {
			case err == nil:
				n++
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS): // the network is full
			default:
				return n, fmt.Errorf("%s, %d bytes: %w", k.name, len(frame), err)
			}
		}
		<-tick.C
	}
	return n, nil
}

func noise(dice *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(dice.Uint32())
	}
}

// kinds are what is sent.
func (p *Attacker) kinds(args FloodArgs) []kind {
	own := p.macs[0]
	victim := func(dice *rand.Rand) aoe.MAC {
		return []aoe.MAC{args.Target, args.Initiator, aoe.Broadcast}[dice.IntN(3)]
	}
	return []kind{
		{"malformed", func(dice *rand.Rand, b []byte) ([]byte, int) { return p.malformed(dice, b, victim(dice)), 0 }},
		{"oversized", func(dice *rand.Rand, b []byte) ([]byte, int) { return p.oversized(dice, b, victim(dice)), 0 }},
		{"requests of a stranger", func(dice *rand.Rand, b []byte) ([]byte, int) {
			return request(dice, b, args.Target, own, dice.Uint32()), 0
		}},
		{"requests as if from the initiator, outside its session", func(dice *rand.Rand, b []byte) ([]byte, int) {
			tag, ok := p.guess(dice)
			if !ok {
				return nil, 0
			}
			return request(dice, b, args.Target, args.Initiator, tag), 0
		}},
		{"answers with the right tag from another MAC", func(dice *rand.Rand, b []byte) ([]byte, int) { return p.forge(b, own, args.Initiator), 0 }},
		{"answers with the right tag over another path", func(dice *rand.Rand, b []byte) ([]byte, int) {
			if dice.IntN(2) == 0 {
				return p.forge(b, args.Target, args.Second), 1
			}
			return p.forge(b, args.Target, args.Initiator), 1
		}},
		{"answers with a guessed tag", func(dice *rand.Rand, b []byte) ([]byte, int) {
			frame := p.forge(b, args.Target, args.Initiator)
			tag, ok := p.guess(dice)
			if frame == nil || !ok {
				return nil, 0
			}
			aoe.Frame(frame).SetTag(tag)
			return frame, 0
		}},
	}
}

// guess is a tag of the initiator's shard that is not of its session. One of its session could be right by chance: who can send with another's address, too,
// is stopped by encryption only.
func (p *Attacker) guess(dice *rand.Rand) (uint32, bool) {
	seen := p.seen.Load()
	if seen == nil {
		return 0, false
	}
	tag := seen.Tag()
	epoch := uint8(dice.IntN(int(aoe.MaxEpoch) + 1))
	if epoch == aoe.TagEpoch(tag) {
		epoch = 0
	}
	return aoe.MakeTag(aoe.TagShard(tag), epoch, aoe.TagCounter(tag)+dice.Uint32N(64)), true
}

// forge is an answer with wrong data to the newest request that was seen.
func (p *Attacker) forge(b []byte, src, dst aoe.MAC) []byte {
	seen := p.seen.Load()
	if seen == nil {
		return nil
	}
	ata, err := seen.ATA()
	if err != nil {
		return nil
	}
	n := aoe.PutATAReply(b, *seen, src, lunAddr, aoe.StatusDRDY, 0)
	data := b[n : n+ata.Sectors()*aoe.SectorSize]
	for i := range data {
		data[i] = 0xee
	}
	aoe.Frame(b).SetDst(dst)
	return b[:n+len(data)]
}

// malformed is noise behind an Ethernet header, or behind an AoE header, or a frame that was cut.
func (p *Attacker) malformed(dice *rand.Rand, b []byte, dst aoe.MAC) []byte {
	n := aoe.EthernetLen + 1 + dice.IntN(1500)
	noise(dice, b[:n])
	h := aoe.Header{
		Dst: dst, Src: p.macs[0], Response: dice.IntN(2) == 0, Command: aoe.Command([]byte{0, 1, 2, 3, 0xf0, 7}[dice.IntN(6)]),
		Addr: lunAddr, Tag: 1<<31 | 1<<28 | dice.Uint32N(1<<28),
	}
	switch dice.IntN(3) {
	case 0: // noise
		f := aoe.Frame(b)
		f.SetDst(dst)
		f.SetSrc(p.macs[0])
		b[12], b[13] = 0x88, 0xa2
	case 1: // noise behind a header
		aoe.PutHeader(b, &h)
	default: // cut
		aoe.PutHeader(b, &h)
		n = aoe.EthernetLen + 1 + dice.IntN(aoe.ATALen-aoe.EthernetLen)
	}
	return b[:n]
}

// oversized is as long as the wire allows, and says that it is longer or less.
func (p *Attacker) oversized(dice *rand.Rand, b []byte, dst aoe.MAC) []byte {
	h := aoe.Header{Dst: dst, Src: p.macs[0], Response: dice.IntN(2) == 0, Addr: lunAddr, Tag: 1<<31 | 1<<28 | dice.Uint32N(1<<28)}
	switch dice.IntN(3) {
	case 0:
		aoe.PutATA(b, &h, &aoe.ATAFields{
			Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATAWriteExt, Sectors: 255, LBA: uint64(dice.IntN(lunSectors)),
		})
	case 1:
		aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 0xffff, SectorCount: 255, Command: aoe.ConfigCommand(dice.IntN(5))})
		binary.BigEndian.PutUint16(b[aoe.HeaderLen+6:], 0xffff) // length of the config string
	default:
		aoe.PutATA(b, &h, &aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, Sectors: uint8(dice.Uint32()), LBA: dice.Uint64()})
	}
	return b
}

// request is a well-formed command to the LUN.
func request(dice *rand.Rand, b []byte, dst, src aoe.MAC, tag uint32) []byte {
	h := aoe.Header{Dst: dst, Src: src, Addr: lunAddr, Tag: tag}
	lba := uint64(dice.IntN(lunSectors - 8))
	switch dice.IntN(5) {
	case 0, 1:
		n := aoe.PutATA(b, &h, &aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATAWriteExt, Sectors: 8, LBA: lba})
		for i := range b[n : n+8*aoe.SectorSize] {
			b[n+i] = 0xee
		}
		return b[:n+8*aoe.SectorSize]
	case 2:
		return b[:aoe.PutATA(b, &h, &aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, Sectors: 8, LBA: lba})]
	case 3:
		var o aoe.OpenFields
		noise(dice, o.Initiator[:])
		copy(o.Generation[:], "ponmlkjihgfedcba")
		o.Incarnation = dice.Uint64()
		return b[:aoe.PutOpen(b, &h, &o)]
	default:
		return b[:aoe.PutConfig(b, &h, &aoe.ConfigFields{Command: aoe.ConfigRead})]
	}
}
