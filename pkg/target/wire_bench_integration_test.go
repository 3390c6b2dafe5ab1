//go:build integration

package target

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// BenchmarkWire keeps a number of requests of 4 KiB outstanding over veth, from one thread.
func BenchmarkWire(b *testing.B) {
	for _, write := range []bool{false, true} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("write=%v/depth=%d", write, depth), func(b *testing.B) { benchWire(b, write, depth) })
		}
	}
}

func benchWire(b *testing.B, write bool, depth int) {
	cable(b, 9000)
	number := uint16(testShelf)
	r := newRigAt(b, Config{Dir: b.TempDir(), Number: &number})
	r.lun(OpenAccess)
	r.onWire()
	l := openPacket(b, "right", link.FilterResponses(1))
	defer func() { _ = l.Close() }()
	frames, err := pool.New(pool.Config{FrameSize: aoe.EthernetLen + 9000, Initial: depth})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = frames.Close() }()
	c := &client{mac: macRight, dst: macLeft}
	request := c.read(aoe.MakeTag(1, 0, 1), 0, 8)
	if write {
		request = c.write(aoe.MakeTag(1, 0, 1), 0, block(1, 8))
	}
	var free []*pool.Frame
	for range depth {
		f := frames.Get()
		f.SetLen(copy(f.Buf(), request))
		free = append(free, f)
	}
	defer func() {
		for _, f := range free {
			f.Release()
		}
	}()
	b.SetBytes(8 * aoe.SectorSize)
	b.ReportAllocs()
	var rx [64][]byte
	fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
	outstanding, sent := 0, 0
	for done := 0; done < b.N; {
		n := min(depth-outstanding, b.N-sent)
		for n > 0 {
			k, err := l.Send(free[:n])
			if err != nil {
				b.Fatal(err)
			}
			n, sent, outstanding = n-k, sent+k, outstanding+k
		}
		n, err := l.Receive(rx[:])
		if err != nil {
			b.Fatal(err)
		}
		if n == 0 {
			if k, _ := unix.Poll(fds, 1000); k == 0 {
				b.Fatalf("no answer: %+v", r.shelf.Stats())
			}
		}
		done, outstanding = done+n, outstanding-n
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "io/s")
}
