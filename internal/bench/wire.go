package bench

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bare wire: frames of the sizes that a storage protocol has, sent and answered with nothing done about them. Both ends move
// batches with one system call each, from one thread that Go's scheduler knows nothing of (RawSyscall: no more than a program in C
// would do). What they reach no protocol in user space over the same sockets can exceed.

const (
	// wireType is an ethertype for local experiments (IEEE 802, 0x88B5): nobody else answers it.
	wireType  = 0x88b5
	wireBatch = 64
	// wireMax holds the largest frame.
	wireMax = 9216
	// wireLost is how long an answer may take; then the outstanding frames are sent again.
	wireLost = 200 * time.Millisecond
)

// wire is one end: a socket, and frames to send and to receive.
type wire struct {
	fd      int
	mac     [6]byte
	in, out [wireBatch]mmsghdr
	iovs    [2 * wireBatch]unix.Iovec
	memory  []byte // first the received frames, then those to send
}

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// openWire opens an end on an interface that sends frames of size bytes.
func openWire(ifname string, size int) (*wire, error) {
	i, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("wire on %s: %w", ifname, err)
	}
	if size < 60 || size > wireMax || size > i.MTU+14 {
		return nil, fmt.Errorf("wire on %s: frames of %d bytes do not fit", ifname, size)
	}
	w := &wire{fd: -1, mac: [6]byte(i.HardwareAddr)}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, wireType))
	if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("wire on %s: %w", ifname, os.NewSyscallError("socket", err))
	}
	for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		_ = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, opt, 8<<20) // without the right to, the default has to do
	}
	patience := unix.NsecToTimeval(int64(wireLost))
	err = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience)
	if err == nil {
		err = unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index})
	}
	if err == nil {
		w.memory, err = unix.Mmap(-1, 0, 2*wireBatch*wireMax, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("wire on %s: %w", ifname, err)
	}
	for k := range wireBatch {
		w.point(&w.in[k], &w.iovs[k], k, wireMax)
		w.point(&w.out[k], &w.iovs[wireBatch+k], wireBatch+k, size)
		frame := w.memory[(wireBatch+k)*wireMax:]
		copy(frame[6:], w.mac[:])
		binary.BigEndian.PutUint16(frame[12:], wireType)
	}
	return w, nil
}

func (w *wire) point(m *mmsghdr, v *unix.Iovec, at, size int) {
	v.Base = &w.memory[at*wireMax]
	v.SetLen(size)
	m.hdr.Iov = v
	m.hdr.SetIovlen(1)
}

// address makes all frames go to mac.
func (w *wire) address(mac []byte) {
	for k := range wireBatch {
		copy(w.memory[(wireBatch+k)*wireMax:], mac)
	}
}

// send sends n frames, at most wireBatch.
func (w *wire) send(n int) error {
	for sent := 0; sent < n; {
		k, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(w.fd), uintptr(unsafe.Pointer(&w.out[sent])), uintptr(n-sent), 0, 0, 0)
		switch errno {
		case 0:
			sent += int(k)
		case unix.EINTR, unix.ENOBUFS:
		default:
			return os.NewSyscallError("sendmmsg", errno)
		}
	}
	return nil
}

// receive waits for frames and returns how many came, 0 if none did for wireLost.
func (w *wire) receive(most int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(w.fd), uintptr(unsafe.Pointer(&w.in[0])), uintptr(min(most, wireBatch)),
		unix.MSG_WAITFORONE, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR, unix.EAGAIN:
		return 0, nil
	}
	return 0, os.NewSyscallError("recvmmsg", errno)
}

func (w *wire) close() {
	if w.memory != nil {
		_ = unix.Munmap(w.memory)
	}
	_ = unix.Close(w.fd)
}

// Answer answers every frame with one of size bytes until stop is closed.
func Answer(ifname string, size int, stop <-chan struct{}) error {
	w, err := openWire(ifname, size)
	if err != nil {
		return err
	}
	defer w.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	known := false
	for {
		n, err := w.receive(wireBatch)
		if err != nil {
			return err
		}
		if n == 0 {
			select {
			case <-stop:
				return nil
			default:
				continue
			}
		}
		if !known {
			w.address(w.memory[6:12])
			known = true
		}
		if err := w.send(n); err != nil {
			return err
		}
	}
}

// Ask keeps depth frames of size bytes on their way to mac, where Answer is, for d, and returns how many were answered, and in what time.
func Ask(ifname string, mac net.HardwareAddr, size, depth int, d time.Duration) (answered int, took time.Duration, err error) {
	if depth < 1 || depth > wireBatch {
		return 0, 0, fmt.Errorf("wire on %s: depth %d is not within 1 and %d", ifname, depth, wireBatch)
	}
	w, err := openWire(ifname, size)
	if err != nil {
		return 0, 0, err
	}
	defer w.close()
	w.address(mac)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	for out, silent := 0, 0; time.Since(begin) < d; {
		if err := w.send(depth - out); err != nil {
			return 0, 0, err
		}
		out = depth
		n, err := w.receive(wireBatch)
		if err != nil {
			return 0, 0, err
		}
		answered += n
		out = max(0, out-n)
		if n > 0 {
			silent = 0
			continue
		}
		if silent++; silent > 25 {
			return 0, 0, fmt.Errorf("wire on %s: %s does not answer", ifname, mac)
		}
		out = 0
	}
	return answered, time.Since(begin), nil
}
