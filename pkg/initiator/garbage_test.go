package initiator

import (
	"bytes"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// garbled is a core with one read outstanding, whose answers the test makes.
type garbled struct {
	loop    *loop
	core    *Core
	now     time.Duration
	c       waiter
	r       Request
	request aoe.Frame
}

func newGarbled(t testing.TB) *garbled {
	l := newLoop(t)
	g := &garbled{loop: l, core: l.core, now: l.now}
	g.r = Request{Op: OpRead, LBA: 80, Sectors: 8, Data: make([]byte, 4096), Done: &g.c}
	g.core.Submit(g.now, &g.r)
	for _, tr := range g.core.Transmits() {
		g.request = aoe.Frame(bytes.Clone(tr.Frame.Bytes()))
		tr.Frame.Release()
	}
	if g.request == nil {
		t.Fatal("nothing was sent")
	}
	return g
}

// good is the right answer.
func (g *garbled) good() aoe.Frame {
	b := make([]byte, aoe.ATALen+4096)
	aoe.PutATAReply(b, g.request, targetMAC, testAddr, aoe.StatusDRDY, 0)
	copy(b[aoe.ATALen:], pattern(5, 8))
	return b
}

// receive hands a frame to the core and gives back what it sends.
func (g *garbled) receive(link LinkID, b []byte) {
	g.core.Receive(g.now, link, b)
	for _, tr := range g.core.Transmits() {
		tr.Frame.Release()
	}
}

// advertise has the target say that it is there, so that the path is in doubt.
func (g *garbled) advertise(text string) {
	g.now += time.Second
	b := make([]byte, 128)
	h := aoe.Header{Dst: aoe.Broadcast, Src: targetMAC, Response: true, Addr: testAddr}
	g.receive(0, b[:aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 32, SectorCount: 17, ConfigString: []byte(text)})])
}

// refuse answers the read with an error.
func (g *garbled) refuse(code aoe.ErrorCode) {
	b := make([]byte, aoe.MinFrameLen)
	aoe.PutReply(b, g.request, targetMAC, testAddr, code)
	g.core.Receive(g.now, 0, b)
}

// prove expects the path to be asked who it is, and nothing else, until it says so; then the read.
func (g *garbled) prove(t *testing.T) {
	t.Helper()
	if state := g.core.Paths(nil)[0].State; state == PathUp {
		t.Fatalf("the path is %v, want it in doubt", state)
	}
	var ask aoe.Frame
	for range 10 {
		g.now += 200 * time.Millisecond
		g.core.Tick(g.now)
		for _, tr := range g.core.Transmits() {
			f := aoe.Frame(bytes.Clone(tr.Frame.Bytes()))
			tr.Frame.Release()
			if f.Tag() == g.request.Tag() {
				t.Fatal("the read is sent over a path in doubt")
			}
			if f.Command() == aoe.CommandATA {
				ask = f
			}
		}
	}
	if ask == nil {
		t.Fatal("nobody asks the path who it is")
	}
	g.core.Receive(g.now, 0, g.loop.reply(ask))
	sent := false
	for _, tr := range g.core.Transmits() {
		sent = sent || aoe.Frame(tr.Frame.Bytes()).Tag() == g.request.Tag()
		tr.Frame.Release()
	}
	if !sent {
		t.Errorf("the read is not sent after the path has proved itself: %+v", g.core.Paths(nil))
	}
}

// TestUnavailableInDoubt: what the target does not serve now is not asked for again while the path is in doubt.
func TestUnavailableInDoubt(t *testing.T) {
	g := newGarbled(t)
	g.advertise("")
	g.refuse(aoe.ErrorUnavailable)
	g.prove(t)
}

// TestAnswerOfAnotherVolume: where another volume turns up, what it says of our requests is no answer.
func TestAnswerOfAnotherVolume(t *testing.T) {
	g := newGarbled(t)
	g.core.cfg.Generation = testGeneration
	g.advertise(identityPrefix + "aaaaaaaaaaaaaaaa")
	if state := g.core.Paths(nil)[0].State; state != PathDown {
		t.Fatalf("the path is %v", state)
	}
	g.receive(0, g.good())
	if g.c.done > 0 {
		t.Errorf("the read has an answer: %v", g.r.Err)
	}
}

// TestProofWithoutBuffer: a path is asked who it is as soon as there is a buffer for the question.
func TestProofWithoutBuffer(t *testing.T) {
	g := newGarbled(t)
	var taken []*pool.Frame
	for f := g.core.control.Get(); f != nil; f = g.core.control.Get() {
		taken = append(taken, f)
	}
	g.advertise("")
	for _, f := range taken {
		f.Release()
	}
	g.prove(t)
}

// TestGarbage: nothing but the right answer completes a request.
func TestGarbage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(f aoe.Frame) []byte
		link  LinkID
	}{
		{"empty", func(f aoe.Frame) []byte { return nil }, 0},
		{"runt", func(f aoe.Frame) []byte { return f[:23] }, 0},
		{"header only", func(f aoe.Frame) []byte { return f[:24] }, 0},
		{"registers cut", func(f aoe.Frame) []byte { return f[:35] }, 0},
		{"no data", func(f aoe.Frame) []byte { return f[:36] }, 0},
		{"data cut by one byte", func(f aoe.Frame) []byte { return f[:len(f)-1] }, 0},
		{"another ethertype", func(f aoe.Frame) []byte { f[12] = 8; return f }, 0},
		{"another version", func(f aoe.Frame) []byte { f[14] = 0x28; return f }, 0},
		{"a request", func(f aoe.Frame) []byte { f[14] = 0x10; return f }, 0},
		{"another shelf", func(f aoe.Frame) []byte { f.SetAddr(aoe.Addr{Shelf: 8, Slot: 3}); return f }, 0},
		{"another slot", func(f aoe.Frame) []byte { f.SetAddr(aoe.Addr{Shelf: 7, Slot: 4}); return f }, 0},
		{"wild address", func(f aoe.Frame) []byte { f.SetAddr(aoe.Any); return f }, 0},
		{"from another MAC", func(f aoe.Frame) []byte { f.SetSrc(ourMAC2); return f }, 0},
		{"from everybody", func(f aoe.Frame) []byte { f.SetSrc(aoe.Broadcast); return f }, 0},
		{"to another MAC", func(f aoe.Frame) []byte { f.SetDst(ourMAC2); return f }, 0},
		{"to everybody", func(f aoe.Frame) []byte { f.SetDst(aoe.Broadcast); return f }, 0},
		{"another tag", func(f aoe.Frame) []byte { f.SetTag(f.Tag() + 1); return f }, 0},
		{"a tag in the same slot", func(f aoe.Frame) []byte { f.SetTag(f.Tag() + tableSlots); return f }, 0},
		{"a tag of another shard", func(f aoe.Frame) []byte { f.SetTag(f.Tag() ^ 1<<28); return f }, 0},
		{"a tag of a session", func(f aoe.Frame) []byte { f.SetTag(f.Tag() ^ 1<<22); return f }, 0},
		{"tag 0", func(f aoe.Frame) []byte { f.SetTag(0); return f }, 0},
		{"OPEN", func(f aoe.Frame) []byte { f[19] = 0xf0; return f }, 0},
		{"config", func(f aoe.Frame) []byte { f[19] = 1; return f }, 0},
		{"unknown command", func(f aoe.Frame) []byte { f[19] = 0x42; return f }, 0},
		{"over an unknown link", func(f aoe.Frame) []byte { return f }, 1},
		{"over no link", func(f aoe.Frame) []byte { return f }, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGarbled(t)
			g.receive(tc.link, tc.spoil(g.good()))
			if g.c.done != 0 {
				t.Fatalf("completed with %v", g.r.Err)
			}
			if tc.name != "config" && g.core.Stats().Rejected == 0 {
				t.Error("was not counted")
			}
			g.receive(0, g.good())
			if g.c.done != 1 || g.r.Err != nil || !bytes.Equal(g.r.Data, pattern(5, 8)) {
				t.Errorf("the right answer after: done %d, %v", g.c.done, g.r.Err)
			}
			g.receive(0, g.good())
			if g.c.done != 1 {
				t.Error("a second copy completed it again")
			}
		})
	}
}

// TestLongAnswer: more data than asked for, or padding, do no harm.
func TestLongAnswer(t *testing.T) {
	g := newGarbled(t)
	g.receive(0, append(g.good(), make([]byte, 4000)...))
	if g.c.done != 1 || g.r.Err != nil || !bytes.Equal(g.r.Data, pattern(5, 8)) {
		t.Errorf("done %d, %v", g.c.done, g.r.Err)
	}
}

// FuzzReceive: no frame makes the core panic, and none but an answer from the target's own MAC with the right tag completes
// anything.
func FuzzReceive(f *testing.F) {
	g := newGarbled(f)
	f.Add([]byte(g.good()))
	f.Add([]byte(g.good()[:40]))
	b := make([]byte, 128)
	h := aoe.Header{Dst: aoe.Broadcast, Src: ourMAC2, Response: true, Addr: testAddr}
	f.Add(b[:aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 1, ConfigString: []byte("other")})])
	o := make([]byte, aoe.OpenLen)
	aoe.PutOpen(o, &h, &aoe.OpenFields{Epoch: 3, Window: 16})
	f.Add(o)
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newGarbled(t)
		before := g.core.Stats().Rejected
		g.receive(0, b)
		if g.c.done != 0 {
			view, err := aoe.ParseFrame(b)
			if err != nil || view.Tag() != g.request.Tag() || view.Src() != targetMAC || view.Dst() != ourMAC || !view.IsResponse() {
				t.Fatalf("%x completed the request", b)
			}
		} else if g.core.Stats().Rejected == before && len(b) < aoe.HeaderLen {
			t.Fatal("a runt was taken for something")
		}
		for range 50 {
			g.now += 100 * time.Millisecond
			g.core.Tick(g.now)
			for _, tr := range g.core.Transmits() {
				tr.Frame.Release()
			}
		}
	})
}
