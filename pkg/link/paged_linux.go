package link

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// wholeMost is the longest frame, in bytes, that with the kernel's own data about it fits two pages in one piece. For a longer one
	// the kernel looks for four pages in a row, and clears them where init_on_alloc is set, as it is by default in many distributions.
	wholeMost = 2*4096 - 512
	// pagedHead is how much of a longer frame stays in one piece: the headers of AoE and ATA, so that 8 KiB of data are whole pages.
	pagedHead = 36
)

// netHeader is struct virtio_net_hdr (packet(7), PACKET_VNET_HDR): what a socket may be told of a frame to be sent.
type netHeader struct {
	_         [2]uint8
	headerLen uint16 // how many bytes the kernel keeps in one piece, in the host's byte order
	_         [3]uint16
}

// paged is a socket that only sends, and has the kernel put what comes after a frame's headers into pages of their own: two in a row for
// 8 KiB, single ones if there are none (alloc_skb_with_frags, net/core/skbuff.c). They are there when four in a row are not, and are half as
// much to clear. The kernel puts them together again, in vain, for an interface that cannot gather.
type paged struct {
	fd      int
	out     *sender
	gathers bool // the interface does
}

// openPaged makes the socket; it is bound to no interface.
func openPaged() (*paged, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // protocol 0 never receives
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	p := &paged{fd: fd, out: newSender(packetBatch, false)}
	head := &netHeader{headerLen: pagedHead}
	p.out.precede(unsafe.Slice((*byte)(unsafe.Pointer(head)), unsafe.Sizeof(*head)))
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("frames in pages: %w", os.NewSyscallError("setsockopt", err))
	}
	if err := setBuffers(fd, sendBuffer); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return p, nil
}

// bind moves the socket to an interface.
func (p *paged) bind(ifindex int32) error {
	return os.NewSyscallError("bind", unix.Bind(p.fd, &unix.SockaddrLinklayer{Ifindex: int(ifindex)}))
}

// wants says whether a frame goes this way.
func (p *paged) wants(f *pool.Frame) bool { return p.gathers && len(f.Bytes()) > wholeMost }

// ethtoolGetGather is ETHTOOL_GSG of linux/ethtool.h.
const ethtoolGetGather = 0x18

// gathers asks whether an interface sends from several pieces of memory.
func gathers(fd int, name string) bool {
	value := struct{ command, data uint32 }{command: ethtoolGetGather}
	req := struct { // struct ifreq, with a pointer
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	return errno == 0 && value.data != 0
}
