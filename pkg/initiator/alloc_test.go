package initiator

import (
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// loop is a core whose network is two buffers: what it costs is the core's alone.
type loop struct {
	t      testing.TB
	core   *Core
	now    time.Duration
	answer [9014]byte
	done   int
}

// Complete implements Completer.
func (l *loop) Complete(*Request) { l.done++ }

// newLoop attaches a core to a target without sessions whose disk reads as zeroes.
func newLoop(t testing.TB) *loop {
	l := &loop{t: t}
	core, err := NewCore(0, CoreConfig{Addr: testAddr})
	if err != nil {
		t.Fatal(err)
	}
	l.core = core
	t.Cleanup(func() {
		if err := core.Release(); err != nil {
			t.Error(err)
		}
	})
	core.SetLink(0, 0, LinkInfo{Name: "loop", MAC: ourMAC, MTU: 9000})
	for range 100 {
		l.turn()
		if core.Ready() {
			return l
		}
	}
	t.Fatal("never ready")
	return nil
}

// turn answers everything that the core sends.
func (l *loop) turn() {
	l.now += 10 * time.Microsecond
	if l.core.Next() <= l.now {
		l.core.Tick(l.now)
	}
	var batch [64]Transmit
	n := copy(batch[:], l.core.Transmits())
	for _, t := range batch[:n] {
		answer := l.reply(aoe.Frame(t.Frame.Bytes()))
		t.Frame.Release()
		l.core.Receive(l.now, 0, answer)
	}
}

func (l *loop) reply(f aoe.Frame) []byte {
	b := l.answer[:]
	switch f.Command() {
	case aoe.CommandConfig:
		h := aoe.Header{Dst: f.Src(), Src: targetMAC, Response: true, Addr: testAddr, Tag: f.Tag()}
		return b[:aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 32, SectorCount: 17})]
	case aoe.CommandATA:
		ata, err := f.ATA()
		if err != nil {
			l.t.Fatal(err)
		}
		n := aoe.PutATAReply(b, f, targetMAC, testAddr, aoe.StatusDRDY, 0)
		switch {
		case ata.Command() == aoe.ATAIdentify:
			aoe.PutIdentify(b[n:], &aoe.IdentifyFields{Serial: "loop", Model: "loop", Sectors: 1 << 20, Flush: true, FUA: true, TrimBlocks: 1})
			return b[:n+aoe.IdentifyLen]
		case ata.Command().IsRead():
			return b[:n+ata.Sectors()*aoe.SectorSize]
		}
		return b[:n]
	}
	n := aoe.PutReply(b, f, targetMAC, testAddr, aoe.ErrorCommand)
	return b[:n]
}

// TestNothingIsAllocatedPerRequest from Submit to Complete: the memory may be what the request is to free.
func TestNothingIsAllocatedPerRequest(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    Request
	}{
		{"read of 4 KiB", Request{Op: OpRead, Sectors: 8}},
		{"write of 4 KiB", Request{Op: OpWrite, Sectors: 8}},
		{"write of 128 KiB", Request{Op: OpWrite, Sectors: 256}},
		{"read of 128 KiB", Request{Op: OpRead, Sectors: 256}},
		{"write with FUA", Request{Op: OpWrite, FUA: true, Sectors: 8}},
		{"flush", Request{Op: OpFlush}},
		{"trim", Request{Op: OpTrim, Sectors: 1 << 16}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLoop(t)
			r := tc.r
			r.Data, r.Done = make([]byte, 256*aoe.SectorSize), l
			one := func() {
				before := l.done
				l.core.Submit(l.now, &r)
				for l.done == before {
					l.turn()
				}
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			one()
			if n := testing.AllocsPerRun(1000, one); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkCore(b *testing.B) {
	for _, tc := range []struct {
		name string
		r    Request
	}{
		{"read4k", Request{Op: OpRead, Sectors: 8}},
		{"write4k", Request{Op: OpWrite, Sectors: 8}},
		{"write128k", Request{Op: OpWrite, Sectors: 256}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			l := newLoop(b)
			r := tc.r
			r.Data, r.Done = make([]byte, 256*aoe.SectorSize), l
			b.SetBytes(int64(r.Sectors) * aoe.SectorSize)
			b.ReportAllocs()
			for b.Loop() {
				before := l.done
				l.core.Submit(l.now, &r)
				for l.done == before {
					l.turn()
				}
			}
		})
	}
}
