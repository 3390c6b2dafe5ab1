package link

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// minFrame is what Ethernet pads frames to, in bytes; virtual interfaces forget to.
const minFrame = 60

// zeroes is what short frames are padded with.
var zeroes [minFrame]byte

// mmsghdr is struct mmsghdr of recvmmsg(2); n is the length of the message that was sent or received.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// sender hands frames to a socket that copies them, a batch a system call, of which the runtime is not told: it does not wait for the
// network (package brief has the reasons).
type sender struct {
	msgs []mmsghdr
	iovs [][3]unix.Iovec // what precedes the frame, the frame, and padding
	pad  bool
	from int // the first of the three that is used
}

// newSender pre-allocates a batch; pad says whether short frames are padded to minFrame.
func newSender(batch int, pad bool) *sender {
	s := &sender{msgs: make([]mmsghdr, batch), iovs: make([][3]unix.Iovec, batch), pad: pad, from: 1}
	for i := range s.msgs {
		s.msgs[i].hdr.Iov = &s.iovs[i][1]
		s.iovs[i][2].Base = &zeroes[0]
	}
	return s
}

// precede puts the same bytes, which are kept, in front of every frame.
func (s *sender) precede(b []byte) {
	s.from = 0
	for i := range s.msgs {
		s.msgs[i].hdr.Iov = &s.iovs[i][0]
		s.iovs[i][0].Base = unsafe.SliceData(b)
		s.iovs[i][0].SetLen(len(b))
	}
}

// send returns how many frames the socket took and why it took no more: 0 if all are sent.
func (s *sender) send(fd int, frames []*pool.Frame) (int, unix.Errno) {
	sent := 0
	for sent < len(frames) {
		batch := frames[sent:min(len(frames), sent+len(s.msgs))]
		for i, f := range batch {
			s.fill(i, f.Bytes())
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(len(batch)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		s.forget(len(batch))
		switch errno {
		case 0:
			sent += int(n)
		case unix.EINTR: // Go preempts threads with signals
		default:
			return sent, errno
		}
	}
	return sent, 0
}

func (s *sender) fill(i int, b []byte) {
	s.iovs[i][1].Base = unsafe.SliceData(b)
	s.iovs[i][1].SetLen(len(b))
	last := 1
	if s.pad && len(b) < minFrame {
		s.iovs[i][2].SetLen(minFrame - len(b))
		last = 2
	}
	s.msgs[i].hdr.SetIovlen(last - s.from + 1)
}

// forget drops pointers to frames, whose memory may be unmapped before the next send: the collector must not find them.
func (s *sender) forget(n int) {
	for i := range s.iovs[:n] {
		s.iovs[i][1].Base = nil
	}
}

// receiver lends frames from buffers of its own, outside the Go heap. Its system call is such a one, too.
type receiver struct {
	msgs []mmsghdr
	iovs []unix.Iovec
	mem  []byte
	size int // of a buffer, in bytes
}

// newReceiver maps and populates a batch of buffers of size bytes.
func newReceiver(batch, size int) (*receiver, error) {
	size = (size + 63) / 64 * 64
	mem, err := unix.Mmap(-1, 0, batch*size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map receive buffers: %w", os.NewSyscallError("mmap", err))
	}
	r := &receiver{msgs: make([]mmsghdr, batch), iovs: make([]unix.Iovec, batch), mem: mem, size: size}
	for i := range r.msgs {
		r.iovs[i].Base = &mem[i*size]
		r.iovs[i].SetLen(size)
		r.msgs[i].hdr.Iov = &r.iovs[i]
		r.msgs[i].hdr.SetIovlen(1)
	}
	return r, nil
}

// receive fills r.msgs with up to most messages; 0 with EAGAIN when there is none.
func (r *receiver) receive(fd, most int) (int, unix.Errno) {
	most = min(most, len(r.msgs))
	if most == 0 {
		return 0, unix.EAGAIN
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(most),
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// message is the i-th of the last receive; cut says that it was longer than the buffer.
func (r *receiver) message(i int) (b []byte, cut bool) {
	n := int(r.msgs[i].n)
	at := i * r.size
	return r.mem[at : at+n : at+n], r.msgs[i].hdr.Flags&unix.MSG_TRUNC != 0
}

func (r *receiver) close() error {
	mem := r.mem
	r.mem, r.iovs, r.msgs = nil, nil, nil
	if mem == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}
