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

// ring is a packet socket with a ring of TPACKET_V2 (packet_mmap.rst), for comparison: links use sendmmsg and recvmmsg.
type ring struct {
	fd   int
	mem  []byte
	next int
}

const (
	ringSlot  = 16 << 10 // a jumbo frame and its header
	ringSlots = 256
	// Of struct tpacket2_hdr: where things are, and what a slot's status can be.
	slotLen, slotMAC, slotData = 4, 12, 32
	slotKernel, slotUser       = 0, 1 // for transmission: free, to be sent
)

// openRing makes the socket; option is PACKET_TX_RING or PACKET_RX_RING.
func openRing(b *testing.B, name string, option int) *ring {
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
	try(unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, option,
		&unix.TpacketReq{Block_size: 4 * ringSlot, Block_nr: ringSlots / 4, Frame_size: ringSlot, Frame_nr: ringSlots}))
	mem, err := unix.Mmap(fd, 0, ringSlots*ringSlot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	try(err)
	b.Cleanup(func() { _ = unix.Munmap(mem) })
	try(setBuffers(fd, 16<<20))
	try(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xa288, Ifindex: byName(b, name).Attrs().Index})) // 0x88a2, big-endian
	return &ring{fd: fd, mem: mem}
}

// slot is the ring's next one and its status.
func (r *ring) slot() ([]byte, *uint32) {
	s := r.mem[r.next*ringSlot:][:ringSlot]
	return s, (*uint32)(unsafe.Pointer(&s[0]))
}

func (r *ring) step() { r.next = (r.next + 1) % ringSlots }

// send copies frames into the ring and has the kernel send them.
func (r *ring) send(b *testing.B, frames []*pool.Frame) {
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

// receive takes what has come, looks at each frame and gives its slot back.
func (r *ring) receive() (n int) {
	for ; ; n++ {
		s, status := r.slot()
		if atomic.LoadUint32(status)&slotUser == 0 {
			return n
		}
		sink += s[binary.NativeEndian.Uint16(s[slotMAC:])]
		atomic.StoreUint32(status, slotKernel)
		r.step()
	}
}

var sink byte

// BenchmarkRing compares the system calls that links use with rings, on the same thread: 32 frames sent and received.
func BenchmarkRing(b *testing.B) {
	for _, size := range []int{60, 8740} {
		for _, how := range []string{"sendmmsg/recvmmsg", "ring/recvmmsg", "sendmmsg/ring"} {
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
	if how == "ring/recvmmsg" {
		r := openRing(b, "left", unix.PACKET_TX_RING)
		send = func(batch []*pool.Frame) { r.send(b, batch) }
	} else {
		from := openPacket(b, "left", FilterResponses(0))
		send = func(batch []*pool.Frame) { sendAll(b, from, batch...) }
	}
	if how == "sendmmsg/ring" {
		return send, openRing(b, "right", unix.PACKET_RX_RING).receive
	}
	to, dst := openPacket(b, "right", FilterRequests(7)), make([][]byte, 64)
	return send, func() int {
		n, err := to.Receive(dst)
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range dst[:n] {
			sink += f[0]
		}
		return n
	}
}
