package target

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	testShelf = 7
	testGen   = "abcdefghijklmn23"
	otherGen  = "zzzzzzzzzzzzzz77"
)

var (
	macA = aoe.MAC{0x52, 0x54, 0, 0, 0, 0xa}
	macB = aoe.MAC{0x52, 0x54, 0, 0, 0, 0xb}
	macC = aoe.MAC{0x52, 0x54, 0, 0, 0, 0xc}

	uuidA = aoe.UUID{0xa, 1, 2, 3}
	uuidB = aoe.UUID{0xb, 1, 2, 3}
)

// rig is a shelf that serves the local socket.
type rig struct {
	t      testing.TB
	shelf  *Shelf
	config Config
	socket string
	stop   func()
	lossy  bool // Close may say that data are not durable
}

func newRig(t testing.TB) *rig {
	t.Helper()
	number := uint16(testShelf)
	return newRigAt(t, Config{Dir: t.TempDir(), Number: &number})
}

func newRigAt(t testing.TB, c Config) *rig {
	t.Helper()
	r := &rig{t: t, config: c, socket: filepath.Join(t.TempDir(), "s")}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start opens and serves; stop ends both.
func (r *rig) start() {
	r.t.Helper()
	shelf, err := Open(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.shelf = shelf
	listener, err := link.ListenLocal(r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- shelf.ServeLocal(ctx, listener) }()
	r.stop = func() {
		cancel()
		if err := <-served; err != nil {
			r.t.Errorf("serve: %v", err)
		}
		if err := shelf.Close(); err != nil && !r.lossy {
			r.t.Errorf("close: %v", err)
		}
		r.stop = func() {}
	}
}

// lun makes a LUN of 1 MiB at slot 3.
func (r *rig) lun(access Access) LUN {
	r.t.Helper()
	l, err := r.shelf.Create(context.Background(), CreateRequest{Slot: 3, Generation: testGen, Name: "test", SizeBytes: 1 << 20, Access: access})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) admit(node string, macs ...aoe.MAC) {
	r.t.Helper()
	if _, err := r.shelf.Admit(context.Background(), 3, testGen, Admission{Node: node, MACs: macs}); err != nil {
		r.t.Fatal(err)
	}
}

// client is an initiator made of single frames.
type client struct {
	t    testing.TB
	mac  aoe.MAC
	dst  aoe.MAC // the target's
	link link.Link
	pool *pool.Pool
	tag  uint32
	got  []aoe.Frame // received, not yet looked at
}

func (r *rig) client(mac aoe.MAC) *client {
	r.t.Helper()
	l, err := link.DialLocal(r.socket, mac)
	if err != nil {
		r.t.Fatal(err)
	}
	return newClient(r.t, l, mac, link.LocalTargetMAC)
}

// newClient takes the link.
func newClient(t testing.TB, l link.Link, mac, dst aoe.MAC) *client {
	t.Helper()
	p, err := pool.New(pool.Config{FrameSize: aoe.EthernetLen + l.MTU(), Initial: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	})
	return &client{t: t, mac: mac, dst: dst, link: l, pool: p, tag: 0x1000}
}

// header addresses slot 3 with a new tag without a session.
func (c *client) header() aoe.Header {
	c.tag++
	return aoe.Header{Dst: c.dst, Src: c.mac, Addr: aoe.Addr{Shelf: testShelf, Slot: 3}, Tag: c.tag}
}

func (c *client) send(frame []byte) {
	c.t.Helper()
	f := c.pool.Get()
	defer f.Release()
	f.SetLen(copy(f.Buf(), frame))
	if n, err := c.link.Send([]*pool.Frame{f}); n != 1 || err != nil {
		c.t.Fatalf("sent %d: %v", n, err)
	}
}

// receive waits for the next frame.
func (c *client) receive() aoe.Frame {
	c.t.Helper()
	var rx [16][]byte
	for deadline := time.Now().Add(10 * time.Second); len(c.got) == 0; {
		n, err := c.link.Receive(rx[:])
		if err != nil {
			c.t.Fatal(err)
		}
		for _, raw := range rx[:n] {
			c.got = append(c.got, bytes.Clone(raw))
		}
		if n > 0 {
			break
		}
		if time.Now().After(deadline) {
			c.t.Fatal("no answer")
		}
		fds := []unix.PollFd{{Fd: int32(c.link.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			c.t.Fatal(err)
		}
	}
	f := c.got[0]
	c.got = c.got[1:]
	return f
}

// next skips unasked advertisements.
func (c *client) next() aoe.Frame {
	c.t.Helper()
	for {
		if f := c.receive(); f.Tag() != 0 {
			return f
		}
	}
}

// answer is the next answer, which must be that to tag.
func (c *client) answer(tag uint32) aoe.Frame {
	c.t.Helper()
	f := c.next()
	if f.Tag() != tag {
		c.t.Fatalf("answer to tag %#x, want %#x: %v %v error %v", f.Tag(), tag, f.Addr(), f.Command(), f.ErrorCode())
	}
	if !f.IsResponse() || f.Dst() != c.mac || f.Src() != c.dst {
		c.t.Fatalf("bad answer header: % x", []byte(f[:aoe.HeaderLen]))
	}
	return f
}

// call sends a frame and returns its answer.
func (c *client) call(frame []byte) aoe.Frame {
	c.t.Helper()
	c.send(frame)
	return c.answer(aoe.Frame(frame).Tag())
}

// silent sends a frame and checks that the answer to a later probe comes first.
func (c *client) silent(frame []byte) {
	c.t.Helper()
	c.send(frame)
	c.fence()
}

// fence returns when the target has handled all that was sent before, as far as its loop does that itself.
func (c *client) fence() {
	c.t.Helper()
	h := c.header()
	h.Addr.Slot = aoe.AnySlot
	buf := make([]byte, 128)
	f := c.call(buf[:aoe.PutOpen(buf, &h, &aoe.OpenFields{Op: opProbe})])
	if o, err := f.Open(); err != nil || o.Op() != opProbe {
		c.t.Fatalf("unexpected answer %v %v", f.Command(), err)
	}
}

// ata builds a command; data are the payload of a write, tag 0 takes a new one without a session.
func (c *client) ata(tag uint32, r aoe.ATAFields, data []byte) []byte {
	h := c.header()
	if tag != 0 {
		h.Tag = tag
	}
	buf := make([]byte, aoe.ATALen+len(data))
	aoe.PutATA(buf, &h, &r)
	copy(buf[aoe.ATALen:], data)
	return buf
}

func (c *client) write(tag uint32, lba uint64, data []byte) []byte {
	return c.ata(tag, aoe.ATAFields{
		Flags: aoe.ATAWrite | aoe.ATAExtended, Command: aoe.ATAWriteExt, LBA: lba, Sectors: uint8(len(data) / aoe.SectorSize),
	}, data)
}

func (c *client) read(tag uint32, lba uint64, sectors uint8) []byte {
	return c.ata(tag, aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, LBA: lba, Sectors: sectors}, nil)
}

func (c *client) flush(tag uint32) []byte {
	return c.ata(tag, aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAFlushExt}, nil)
}

// wantATA checks status and error register.
func wantATA(t testing.TB, f aoe.Frame, status, errorRegister uint8) aoe.ATA {
	t.Helper()
	a, err := f.ATA()
	if err != nil {
		t.Fatal(err)
	}
	if f.IsError() || a.Status() != status || a.Error() != errorRegister {
		t.Fatalf("AoE error %v, status %#x, error register %#x; want %#x, %#x", f.ErrorCode(), a.Status(), a.Error(), status, errorRegister)
	}
	return a
}

func wantOK(t testing.TB, f aoe.Frame) aoe.ATA {
	t.Helper()
	return wantATA(t, f, aoe.StatusDRDY, 0)
}

func wantError(t testing.TB, f aoe.Frame, code aoe.ErrorCode) {
	t.Helper()
	if !f.IsError() || f.ErrorCode() != code {
		t.Fatalf("error %v %v, want %v", f.IsError(), f.ErrorCode(), code)
	}
}

// open sends an OPEN and returns the answer's argument.
func (c *client) open(op aoe.OpenOp, uuid aoe.UUID, incarnation uint64, generation string) aoe.Open {
	c.t.Helper()
	f := c.call(c.openFrame(op, uuid, incarnation, generation))
	o, err := f.Open()
	if err != nil || f.IsError() {
		c.t.Fatalf("OPEN answered with %v, %v", err, f.ErrorCode())
	}
	return o
}

func (c *client) openFrame(op aoe.OpenOp, uuid aoe.UUID, incarnation uint64, generation string) []byte {
	h := c.header()
	buf := make([]byte, 128)
	o := aoe.OpenFields{Op: op, Initiator: uuid, Incarnation: incarnation}
	copy(o.Generation[:], generation)
	return buf[:aoe.PutOpen(buf, &h, &o)]
}

// session opens one and returns its epoch.
func (c *client) session(uuid aoe.UUID, incarnation uint64) uint8 {
	c.t.Helper()
	o := c.open(aoe.OpenSession, uuid, incarnation, testGen)
	if o.Status() != aoe.OpenDone || o.Epoch() == 0 || o.Window() != replayWindow {
		c.t.Fatalf("OPEN: status %v, epoch %d, window %d", o.Status(), o.Epoch(), o.Window())
	}
	return o.Epoch()
}

// block is n sectors of one byte.
func block(b byte, sectors int) []byte { return bytes.Repeat([]byte{b}, sectors*aoe.SectorSize) }

// config, mask and reserve build in-band commands for slot 3.
func (c *client) config(command aoe.ConfigCommand, operand string) []byte {
	h := c.header()
	buf := make([]byte, 2048)
	return buf[:aoe.PutConfig(buf, &h, &aoe.ConfigFields{Command: command, ConfigString: []byte(operand)})]
}

func (c *client) mask(command aoe.MaskCommand, list ...aoe.Directive) []byte {
	h := c.header()
	buf := make([]byte, 4096)
	return buf[:aoe.PutMACMask(buf, &h, command, list)]
}

func (c *client) reserve(command aoe.ReserveCommand, macs ...aoe.MAC) []byte {
	h := c.header()
	buf := make([]byte, 4096)
	return buf[:aoe.PutReserve(buf, &h, command, macs)]
}
