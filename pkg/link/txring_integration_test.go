//go:build integration

package link

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// txRing is a packet socket with a transmit ring of TPACKET_V2 (packet_mmap.rst), for comparison: links send with sendmmsg.
type txRing struct {
	fd   int
	mem  []byte
	next int
}

const (
	ringSlot  = 16 << 10 // a jumbo frame and its header
	ringSlots = 256
	// Of struct tpacket2_hdr: where things are, and what a slot's status can be.
	slotData             = 32
	slotKernel, slotUser = 0, 1 // for transmission: free, to be sent
)

// openTxRing makes the socket.
func openTxRing(b *testing.B, name string) *txRing {
	b.Helper()
	try := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	try(err)
	b.Cleanup(func() { _ = unix.Close(fd) })
	try(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2))
	try(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	try(unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING,
		&unix.TpacketReq{Block_size: 4 * ringSlot, Block_nr: ringSlots / 4, Frame_size: ringSlot, Frame_nr: ringSlots}))
	mem, err := unix.Mmap(fd, 0, ringSlots*ringSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	try(err)
	b.Cleanup(func() { _ = unix.Munmap(mem) })
	try(setBuffers(fd, 16<<20))
	try(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xa288, Ifindex: byName(b, name).Attrs().Index})) // 0x88a2, big-endian
	return &txRing{fd: fd, mem: mem}
}

// slot is the ring's next one and its status.
func (r *txRing) slot() ([]byte, *uint32) {
	s := r.mem[r.next*ringSlot:][:ringSlot]
	return s, (*uint32)(unsafe.Pointer(&s[0]))
}

func (r *txRing) step() { r.next = (r.next + 1) % ringSlots }

// send copies frames into the ring and has the kernel send them.
func (r *txRing) send(b *testing.B, frames []*pool.Frame) {
	for _, f := range frames {
		s, status := r.slot()
		for tries := 0; atomic.LoadUint32(status) != slotKernel; tries++ {
			if tries > 1e6 {
				b.Fatal("the ring's slot does not come back")
			}
		}
		binary.NativeEndian.PutUint32(s[slotLen:], uint32(copy(s[slotData:], f.Bytes())))
		atomic.StoreUint32(status, slotUser)
		r.step()
	}
	if err := unix.Sendto(r.fd, nil, unix.MSG_DONTWAIT, nil); err != nil && !errors.Is(err, unix.EAGAIN) {
		b.Fatal(err)
	}
}

var sink byte

// BenchmarkRing compares what links use, sendmmsg and a receive ring, with the alternatives, on the same thread: 32 frames sent and received.
func BenchmarkRing(b *testing.B) {
	for _, size := range []int{60, 8740} {
		for _, how := range []string{"sendmmsg/ring", "ring/ring", "sendmmsg/recvmmsg"} {
			b.Run(how+"/"+sizeName(size), func(b *testing.B) {
				cable(b, 9000)
				var batch []*pool.Frame
				frame := request(0x80000001)
				frame.length = size
				for range 32 {
					batch = append(batch, frame.from(b, macLeft, macRight))
				}
				send, receive := ends(b, how)
				b.SetBytes(int64(size * len(batch)))
				for b.Loop() {
					send(batch)
					for got, tries := 0, 0; got < len(batch); tries++ {
						if tries > 1e6 {
							b.Fatalf("received %d of %d", got, len(batch))
						}
						got += receive()
					}
				}
			})
		}
	}
}

func ends(b *testing.B, how string) (send func([]*pool.Frame), receive func() int) {
	if how == "ring/ring" {
		r := openTxRing(b, "left")
		send = func(batch []*pool.Frame) { r.send(b, batch) }
	} else {
		from := openPacket(b, "left", FilterResponses(0))
		send = func(batch []*pool.Frame) { sendAll(b, from, batch...) }
	}
	if how == "sendmmsg/recvmmsg" {
		return send, recvmmsg(b, "right")
	}
	to, dst := openPacket(b, "right", FilterRequests(7)), make([][]byte, 64)
	return send, func() int {
		n, err := to.Receive(dst)
		if err != nil {
			b.Fatal(err)
		}
		look(dst[:n])
		return n
	}
}

// recvmmsg is a socket without a ring, and reads from it.
func recvmmsg(b *testing.B, name string) func() int {
	b.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		b.Cleanup(func() { _ = unix.Close(fd) })
		err = setBuffers(fd, 8<<20)
	}
	if err == nil {
		err = attachFilter(fd, FilterRequests(7))
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xa288, Ifindex: byName(b, name).Attrs().Index})
	}
	if err != nil {
		b.Fatal(err)
	}
	in, err := newReceiver(64, 9014)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.close() })
	dst := make([][]byte, 64)
	return func() int {
		n, errno := in.receive(fd, len(dst))
		if errno != 0 && errno != unix.EAGAIN {
			b.Fatal(errno)
		}
		if errno != 0 {
			return 0
		}
		for i := range n {
			dst[i], _ = in.message(i)
		}
		look(dst[:n])
		return n
	}
}

// look reads frames as whoever uses them does.
func look(frames [][]byte) {
	for _, f := range frames {
		for i := 0; i < len(f); i += 64 {
			sink += f[i]
		}
	}
}
