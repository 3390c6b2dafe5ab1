//go:build integration

package initiator

import (
	"context"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// streams keeps requests in flight, each submitted again from its completion.
type streams struct {
	d    *Device
	left int
	out  int
	done chan struct{}
	err  error
}

func (s *streams) Complete(r *Request) {
	s.out--
	if r.Err != nil {
		s.err = r.Err
	}
	if s.left > 0 && s.err == nil {
		s.left--
		s.out++
		r.LBA = (r.LBA + 8*977) % (8 << 11)
		s.d.Submit(r)
	}
	if s.out == 0 {
		close(s.done)
	}
}

func BenchmarkOurTarget(b *testing.B) {
	ours, theirs := cable(b, "bt", 9000)
	newShelf(b, []string{theirs}, ours)
	d, err := packetShard(b, "", ours).Attach(context.Background(), testDevice())
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, d)
}

func BenchmarkVblade(b *testing.B) {
	ours, theirs := cable(b, "bv", 9000)
	startVblade(b, theirs, diskFile(b, 16<<20))
	d, err := packetShard(b, "", ours).Attach(context.Background(), DeviceConfig{Addr: testAddr})
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, d)
}

func benchmark(b *testing.B, d *Device) {
	for _, tc := range []struct {
		name    string
		op      Op
		sectors uint32
		depth   int
	}{{"read4k1", OpRead, 8, 1}, {"write4k1", OpWrite, 8, 1}, {"read4k32", OpRead, 8, 32}, {"write4k32", OpWrite, 8, 32}, {"read128k8", OpRead, 256, 8}, {"write128k8", OpWrite, 256, 8}} {
		b.Run(tc.name, func(b *testing.B) {
			depth := min(tc.depth, b.N)
			s := &streams{d: d, left: b.N - depth, out: depth, done: make(chan struct{})}
			before := d.Stats().Retransmits
			b.SetBytes(int64(tc.sectors) * aoe.SectorSize)
			b.ReportAllocs()
			b.ResetTimer()
			if err := d.Shard().Do(context.Background(), func() {
				for i := range depth {
					d.Submit(&Request{Op: tc.op, LBA: uint64(i) * 8, Sectors: tc.sectors, Data: make([]byte, tc.sectors*aoe.SectorSize), Done: s})
				}
			}); err != nil {
				b.Fatal(err)
			}
			<-s.done
			if s.err != nil {
				b.Fatal(s.err)
			}
			b.ReportMetric(float64(d.Stats().Retransmits-before)/float64(b.N), "resent/op")
		})
	}
}
