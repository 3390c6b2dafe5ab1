package target

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

func TestFramesThatAreNone(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	good := func() []byte { return a.read(0, 0, 1) }
	for _, test := range []struct {
		name      string
		frame     func() []byte
		malformed uint64
	}{
		{"one byte", func() []byte { return good()[:1] }, 1},
		{"half a header", func() []byte { return good()[:20] }, 1},
		{"half an ATA argument", func() []byte { return good()[:30] }, 1},
		{"half a config", func() []byte { return a.config(aoe.ConfigRead, "")[:28] }, 1},
		{"test with a string longer than the frame", func() []byte { f := a.config(aoe.ConfigTest, "abc"); f[31] = 200; return f }, 1},
		{"other ethertype", func() []byte { f := good(); f[12] = 0x08; return f }, 1},
		{"response", func() []byte { f := good(); f[14] |= 8; return f }, 0},
		{"other shelf", func() []byte { f := good(); aoe.Frame(f).SetAddr(aoe.Addr{Shelf: 8, Slot: 3}); return f }, 0},
		{"other slot", func() []byte { f := good(); aoe.Frame(f).SetAddr(aoe.Addr{Shelf: 7, Slot: 4}); return f }, 0},
		{"ATA to every slot", func() []byte { f := good(); aoe.Frame(f).SetAddr(aoe.Addr{Shelf: 7, Slot: 255}); return f }, 0},
		{"ATA to every shelf", func() []byte { f := good(); aoe.Frame(f).SetAddr(aoe.Addr{Shelf: 0xffff, Slot: 3}); return f }, 0},
		{"for another station", func() []byte { f := good(); aoe.Frame(f).SetDst(macB); return f }, 0},
		{"from a group", func() []byte { f := good(); aoe.Frame(f).SetSrc(aoe.Broadcast); return f }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			a.t = t
			before := r.shelf.Stats().Malformed
			a.silent(test.frame())
			if n := r.shelf.Stats().Malformed - before; n != test.malformed {
				t.Fatalf("%d counted as malformed, want %d", n, test.malformed)
			}
		})
	}
	for name, test := range map[string]struct {
		frame []byte
		code  aoe.ErrorCode
	}{
		"version 2":       {func() []byte { f := good(); f[14] = 0x20; return f }(), aoe.ErrorVersion},
		"unknown command": {func() []byte { f := good(); f[19] = 4; return f }(), aoe.ErrorCommand},
		"other vendor":    {func() []byte { f := good(); f[19] = 0xf1; return f }(), aoe.ErrorCommand},
		"no OPEN":         {func() []byte { f := good(); f[19] = 0xf0; return f }(), aoe.ErrorCommand},
		"OPEN operation":  {func() []byte { return a.openFrame(9, uuidA, 1, testGen) }(), aoe.ErrorArgument},
	} {
		t.Run(name, func(t *testing.T) {
			a.t = t
			wantError(t, a.call(test.frame), test.code)
		})
	}
}

// Padding is not data, and its absence no fault.
func TestPadding(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	padded := append(a.read(0, 0, 1), make([]byte, 24)...)
	if f := a.call(padded); len(f) != aoe.ATALen+aoe.SectorSize {
		t.Fatalf("%d bytes", len(f))
	}
	if f := a.call(a.flush(0)); len(f) != aoe.MinFrameLen {
		t.Fatalf("answer of %d bytes is not padded", len(f))
	}
}

// nullLink takes what is sent and receives nothing; frames go straight to handle.
type nullLink struct {
	link.Link
	mtu int
}

// Return implements link.Link: the frames are copies.
func (nullLink) Return() {}

func (l nullLink) Name() string                  { return "null" }
func (l nullLink) MAC() [6]byte                  { return link.LocalTargetMAC }
func (l nullLink) MTU() int                      { return l.mtu }
func (l nullLink) FD() int                       { return -1 }
func (l nullLink) Receive([][]byte) (int, error) { return 0, nil }
func (l nullLink) Close() error                  { return nil }

// bench is a port without a loop.
func bench(tb testing.TB, access Access, wrap func(File) File) (*Shelf, *port) {
	tb.Helper()
	number := uint16(testShelf)
	s, err := Open(Config{Dir: tb.TempDir(), Number: &number, wrap: wrap})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Create(context.Background(), CreateRequest{Slot: 3, Generation: testGen, SizeBytes: 1 << 20, Access: access}); err != nil {
		tb.Fatal(err)
	}
	p, err := newPort(context.Background(), s, nullLink{mtu: 9000})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.settle()
		if err := p.close(); err != nil {
			tb.Error(err)
		}
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s, p
}

// settle waits for the jobs that workers have and lets go of all answers.
func (p *port) settle() {
	for p.lent > 0 {
		p.takeBack(<-p.finished)
	}
	p.drop(len(p.out))
}

// FuzzHandle: whatever arrives, the target neither crashes nor leaks a frame, and answers only what is well-formed.
func FuzzHandle(f *testing.F) {
	s, p := bench(f, OpenAccess, nil)
	_, err := s.Create(context.Background(), CreateRequest{Slot: 4, Generation: otherGen, SizeBytes: 1 << 20})
	if err == nil {
		_, err = s.Admit(context.Background(), 4, otherGen, Admission{Node: "n", MACs: []aoe.MAC{macA}})
	}
	if err != nil {
		f.Fatal(err)
	}
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	for _, seed := range [][]byte{
		c.read(0, 0, 1), c.write(0, 0, block(1, 2)), c.flush(0), c.config(aoe.ConfigRead, ""), c.config(aoe.ConfigForceSet, "x"),
		c.mask(aoe.MaskEdit, aoe.Directive{Command: aoe.DirectiveAdd, MAC: macA}), c.reserve(aoe.ReserveSet, macA),
		c.openFrame(aoe.OpenSession, uuidA, 1, testGen), c.ata(0, aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}, nil),
		c.ata(0, aoe.ATAFields{Flags: 0x41, Command: aoe.ATADataSetManagement, Feature: 1, Sectors: 1}, block(0xff, 1)),
		c.write(aoe.MakeTag(0, 1, 5), 0, block(1, 1)), {}, bytes.Repeat([]byte{0xff}, 100),
	} {
		f.Add(seed)
		if len(seed) > 20 {
			other := bytes.Clone(seed)
			other[18] = 4
			f.Add(other)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p.handle(frame)
		p.serveStaged()
		for p.lent > 0 {
			p.takeBack(<-p.finished)
		}
		for _, out := range p.out {
			answer, err := aoe.ParseFrame(out.Bytes())
			if err != nil || !answer.IsResponse() || answer.Addr().Shelf != testShelf || len(answer) > aoe.EthernetLen+9000 {
				t.Fatalf("answer % x: %v", []byte(answer[:min(len(answer), 40)]), err)
			}
		}
		p.settle()
		if st := p.pool.Stats(); st.Free != st.Frames {
			t.Fatalf("%d of %d frames free", st.Free, st.Frames)
		}
	})
}

// After warm-up, serving allocates nothing per frame.
func TestServingDoesNotAllocate(t *testing.T) {
	for _, access := range []Access{OpenAccess, ManagedAccess} {
		s, p := bench(t, access, nil)
		c := &client{mac: macA, dst: link.LocalTargetMAC}
		if access == ManagedAccess {
			if _, err := s.Admit(context.Background(), 3, testGen, Admission{Node: "n", MACs: []aoe.MAC{macA}}); err != nil {
				t.Fatal(err)
			}
			p.handle(c.openFrame(aoe.OpenSession, uuidA, 1, testGen))
			p.serveStaged()
			p.takeBack(<-p.finished)
		}
		epoch := uint8(0)
		if len(p.out) > 0 {
			o, err := aoe.Frame(p.out[0].Bytes()).Open()
			if err != nil {
				t.Fatal(err)
			}
			epoch = o.Epoch()
		}
		p.settle()
		counter := uint32(0)
		trim := block(0, 1)
		aoe.PutTrim(trim, 80, 8)
		for name, frame := range map[string][]byte{
			"read": c.read(tag(epoch, 0), 0, 8), "write": c.write(tag(epoch, 0), 0, block(1, 8)), "flush": c.flush(tag(epoch, 0)),
			"FUA":  c.ata(tag(epoch, 0), aoe.ATAFields{Flags: 0x41, Command: aoe.ATAWriteDMAFUAExt, Sectors: 1}, block(1, 1)),
			"trim": c.ata(tag(epoch, 0), aoe.ATAFields{Flags: 0x41, Command: aoe.ATADataSetManagement, Feature: 1, Sectors: 1}, trim),
		} {
			n := testing.AllocsPerRun(100, func() {
				counter++
				aoe.Frame(frame).SetTag(tag(epoch, counter))
				p.handle(frame)
				p.serveStaged()
				for p.lent > 0 {
					p.takeBack(<-p.finished)
				}
				if len(p.out) != 1 {
					t.Fatalf("%s: %d answers", name, len(p.out))
				}
				if a, err := aoe.Frame(p.out[0].Bytes()).ATA(); err != nil || a.Status() != aoe.StatusDRDY {
					t.Fatalf("%s: %v", name, err)
				}
				p.settle()
			})
			if n != 0 {
				t.Errorf("%s, %s: %v allocations per frame", access, name, n)
			}
		}
	}
}

// Frames beyond what the queues take are dropped, and every frame comes back.
func TestFlood(t *testing.T) {
	var d *disk
	s, p := bench(t, OpenAccess, func(b File) File { d = newDisk(b); return d })
	release := d.block()
	defer release()
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	frame := c.write(0, 0, block(1, 1))
	const sent = 5000
	for range sent {
		p.handle(frame)
		p.serveStaged()
	}
	if dropped := s.Stats().Dropped; dropped < sent-portFrames-lunQueue {
		t.Fatalf("%d dropped", dropped)
	}
	release()
	p.settle()
	if st := p.pool.Stats(); st.Free != st.Frames || st.Frames > portFrames {
		t.Fatalf("%+v", st)
	}
}

// Random bytes behind a good header reach the LUN's code, too.
func TestGarbageArguments(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		frame := a.ata(0, aoe.ATAFields{}, make([]byte, rnd.IntN(1200)))
		for i := aoe.HeaderLen; i < len(frame); i++ {
			frame[i] = byte(rnd.Uint32())
		}
		frame[19] = byte(rnd.IntN(4)) // an AoE command
		if frame[19] == byte(aoe.CommandMACMask) || frame[19] == byte(aoe.CommandReserve) {
			frame[25] = 0 // do not lock ourselves out
			frame[24] = 0
		}
		a.send(frame)
	}
	for f := a.receive(); ; f = a.receive() { // the last of them may be silent
		if f.Command() == aoe.CommandOpen {
			break
		}
		if len(a.got) == 0 {
			a.send(a.openFrame(aoe.OpenSession, uuidA, 1, testGen))
		}
	}
}
