package initiator

import (
	"bytes"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// besieged is a core at work, whose target is honest and whose segment is not.
type besieged struct {
	*world
	sent aoe.Frame // newest
	c    waiter
	open []*Request
	disk map[uint64]byte // what 8 sectors were filled with last, by LBA
}

// transmit is world's, with an eye on what the core sends.
func (z *besieged) transmit() {
	for _, t := range z.core.Transmits() {
		z.sent = append(z.sent[:0], t.Frame.Bytes()...)
		if _, err := z.links[t.Link].Send([]*pool.Frame{t.Frame}); err != nil {
			z.t.Fatal(err)
		}
		t.Frame.Release()
	}
}

// step lets time pass.
func (z *besieged) step(span time.Duration) {
	limit := z.now + span
	for more := true; more; more = z.world.step(limit) {
		z.transmit()
	}
	z.now = max(z.now, limit)
}

// finish waits for all requests, which must have succeeded.
func (z *besieged) finish() {
	for range 100 {
		if z.c.done == len(z.open) {
			break
		}
		z.step(100 * time.Millisecond)
	}
	if z.c.done != len(z.open) {
		z.t.Fatalf("%d of %d requests are done", z.c.done, len(z.open))
	}
	for _, r := range z.open {
		if r.Err != nil {
			z.t.Fatalf("%s at %d: %v", r.Op, r.LBA, r.Err)
		}
		if want := bytes.Repeat([]byte{z.disk[r.LBA]}, len(r.Data)); r.Op == OpRead && !bytes.Equal(r.Data, want) {
			z.t.Fatalf("read at %d differs from what was written", r.LBA)
		}
	}
	z.open, z.c.done = nil, 0
}

// attack gives the core a frame that it must not believe: noise, or an answer to what it asked last, spoilt in a way that it can see.
func (z *besieged) attack(how byte, noise []byte) {
	b := make([]byte, aoe.ATALen+8*aoe.SectorSize+len(noise))
	n := copy(b, noise)
	f := aoe.Frame(b)
	if how&1 != 0 && len(z.sent) >= aoe.ATALen { // else it is noise
		n = aoe.PutATAReply(b, z.sent, targetMAC, testAddr, aoe.StatusDRDY, 0) + 8*aoe.SectorSize
		for i := range b[aoe.ATALen:n] {
			b[aoe.ATALen+i] = 0xee
		}
		for i, c := range noise { // all but the addresses and the tag
			if at := 14 + i; at < n && (at < 20 || at >= aoe.HeaderLen) {
				b[at] ^= c
			}
		}
	}
	link := LinkID(0)
	switch how >> 1 & 3 {
	case 0:
		if n >= aoe.EthernetLen {
			f.SetSrc(ourMAC2)
		}
	case 1:
		link = 1
	case 2:
		if n >= aoe.HeaderLen {
			f.SetTag(f.Tag() ^ 1<<25) // another epoch
		}
	default:
		n = min(n, aoe.HeaderLen-1)
	}
	z.core.Receive(z.now, link, b[:n])
}

// FuzzCore has a core read and write while frames arrive that it must not believe. Each request succeeds once, and with the right data.
func FuzzCore(f *testing.F) {
	for _, how := range []byte{5, 7, 0x0d, 0x0f, 4, 6} { // an answer that is faster than the right one
		f.Add([]byte{0, 0x1b, 1, how, 0, 1, how})
	}
	f.Add([]byte{0, 1, 2, 3, 4, 3, 5, 200, 6, 9, 1, 9, 1, 0x0f, 0x10, 7, 3})
	f.Add(bytes.Repeat([]byte{1, 0x11, 2, 0x21, 7, 4}, 20))
	f.Add(bytes.Repeat([]byte{0, 5, 3, 0x13, 0xff, 6, 0x23, 0x55, 3}, 12))
	f.Fuzz(func(t *testing.T, script []byte) {
		script = script[:min(len(script), 400)]
		z := &besieged{world: newWorld(t, 1, linktest.Profile{}, nil), disk: map[uint64]byte{}}
		z.attach()
		busy := map[uint64]bool{}
		for i := 0; i < len(script); i++ {
			op, arg := script[i]&7, script[i]>>3
			switch op {
			case 0, 1, 2: // write, read, flush
				r := &Request{Op: []Op{OpWrite, OpRead, OpFlush}[op], Done: &z.c}
				if op != 2 {
					r.LBA, r.Sectors, r.Data = uint64(arg)*8, 8, make([]byte, 8*aoe.SectorSize)
					if busy[r.LBA] {
						z.finish()
						clear(busy)
					}
					busy[r.LBA] = true
				}
				if op == 0 {
					for j := range r.Data {
						r.Data[j] = byte(i) | 1
					}
					z.disk[r.LBA] = byte(i) | 1
				}
				z.open = append(z.open, r)
				z.core.Submit(z.now, r)
				z.transmit() // the answer is on its way now
			case 3: // the network goes on
				z.step(time.Duration(arg) * time.Millisecond)
			default:
				n := min(len(script)-i-1, int(arg))
				z.attack(op&3|arg<<2&4, script[i+1:i+1+n])
				i += n
			}
		}
		z.finish()
	})
}
