//go:build vm

package lab

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// Raw sends frames of one's own making from a host, for tests of those who do not keep to the protocol.
type Raw struct {
	h    *Host
	link *link.Packet
	pool *pool.Pool
}

// rawTag has the session bit and epoch of no session in use; its answers pass FilterResponses(0).
const rawTag = 0x80000001

// Raw opens a packet socket on the host's interface.
func (h *Host) Raw() *Raw {
	h.l.t.Helper()
	var l *link.Packet
	err := h.inside(func() (err error) {
		l, err = link.OpenPacket(h.If, link.PacketConfig{Filter: link.FilterResponses(0)})
		return err
	})
	if err != nil {
		h.l.t.Fatal(err)
	}
	p, err := pool.New(pool.Config{FrameSize: 9216, Initial: 4})
	if err != nil {
		h.l.t.Fatal(err)
	}
	h.l.t.Cleanup(func() { _, _ = l.Close(), p.Close() })
	return &Raw{h: h, link: l, pool: p}
}

// ATA broadcasts an ATA command to addr from src (zero: the host's own MAC) and returns the first answer within d, nil if there is none.
func (r *Raw) ATA(addr aoe.Addr, src aoe.MAC, fields aoe.ATAFields, data []byte, d time.Duration) aoe.Frame {
	r.h.l.t.Helper()
	if src == (aoe.MAC{}) {
		src = aoe.MAC(r.link.MAC())
	}
	f := r.pool.Get()
	defer f.Release()
	n := aoe.PutATA(f.Buf(), &aoe.Header{Dst: aoe.Broadcast, Src: src, Addr: addr, Tag: rawTag}, &fields)
	n += copy(f.Buf()[n:], data)
	f.SetLen(aoe.Pad(f.Buf(), n))
	if sent, err := r.link.Send([]*pool.Frame{f}); err != nil || sent != 1 {
		r.h.l.t.Fatalf("send raw frame: sent %d, %v", sent, err)
	}
	got := make([][]byte, 8)
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		k, err := r.link.Receive(got)
		if err != nil {
			r.h.l.t.Fatal(err)
		}
		if k > 0 {
			return aoe.Frame(append([]byte(nil), got[0]...))
		}
	}
	return nil
}
