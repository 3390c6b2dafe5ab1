package link

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// StandardLen is the longest frame of an interface with the usual MTU of 1500, in bytes, Ethernet header included. Every config string fits.
const StandardLen = 1514

const (
	// ethernetLen is what a frame has beside the MTU's bytes.
	ethernetLen = 14
	// packetBatch is how many frames one system call sends.
	packetBatch = 64
	// defaultBuffer is the size of the receive ring in bytes: 896 frames, of whatever length, where the MTU is 9000.
	defaultBuffer = 8 << 20
	// sendBuffer is how much the socket's send queue may hold, in bytes, as the kernel charges for it.
	sendBuffer = 8 << 20
)

// PacketConfig says what a packet link receives.
type PacketConfig struct {
	// Filter is required: without one a link would get every AoE frame of the segment.
	Filter Filter
	// Buffer is the size of the receive ring in bytes, which the kernel keeps in memory; 0 means 8 MiB.
	Buffer int
	// Longest is the longest frame to be received, Ethernet header included; 0 means what the MTU allows. Longer ones are dropped.
	Longest int
}

// PacketStats counts since the link was opened.
type PacketStats struct {
	// Dropped frames found the receive ring full.
	Dropped uint64
	// Truncated frames were longer than the MTU, or Longest, and were not lent.
	Truncated uint64
}

// Packet is a Link over AF_PACKET on one interface: of a bond or a bridge the master, not a port, which receives nothing. It copies: frames are free again when Send returns. Needs CAP_NET_RAW.
type Packet struct {
	name    string
	cfg     PacketConfig
	fd      int
	ifindex int32
	mac     [6]byte
	mtu     int
	out     *sender
	long    *paged // for long frames; nil: the kernel has no such thing
	in      *ring
	stats   PacketStats
}

var _ Link = (*Packet)(nil)

// OpenPacket binds a socket to the named interface. Nothing is queued before the filter is in force.
func OpenPacket(ifname string, c PacketConfig) (*Packet, error) {
	if len(c.Filter) == 0 {
		return nil, fmt.Errorf("open packet link %s: no filter", ifname)
	}
	// Protocol 0 receives nothing until bind(2) gives the real one (packet(7)).
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet link %s: %w", ifname, os.NewSyscallError("socket", err))
	}
	if c.Buffer == 0 {
		c.Buffer = defaultBuffer
	}
	l := &Packet{name: ifname, cfg: c, fd: fd, out: newSender(packetBatch, true)}
	if l.long, err = openPaged(); err != nil {
		l.long = nil // frames go in one piece then, as over older kernels
	}
	if err := l.configure(); err != nil {
		return nil, errors.Join(fmt.Errorf("open packet link %s: %w", ifname, err), l.Close())
	}
	if err := l.Refresh(); err != nil {
		return nil, errors.Join(fmt.Errorf("open packet link: %w", err), l.Close())
	}
	return l, nil
}

func (l *Packet) configure() error {
	if err := setBuffers(l.fd, sendBuffer); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(l.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing frames: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// setBuffers sizes both queues of a socket: past the system's limit if it may (CAP_NET_ADMIN), else up to it.
func setBuffers(fd, size int) error {
	for _, opt := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[0], size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[1], size); err != nil {
			return fmt.Errorf("size socket buffers: %w", os.NewSyscallError("setsockopt", err))
		}
	}
	return nil
}

func attachFilter(fd int, f Filter) error {
	prog := make([]unix.SockFilter, len(f))
	for i, ins := range f {
		prog[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	if err != nil {
		return fmt.Errorf("attach filter: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// Refresh reads MAC, MTU and state of the interface again, and binds again if it was deleted and created anew. It ends the loan
// of received frames. The error matches ErrDown if the interface is not there or not up; the link can be refreshed again.
func (l *Packet) Refresh() error {
	now, err := readInterface(l.fd, l.name)
	if err != nil {
		return fmt.Errorf("refresh %s: %w", l.name, err)
	}
	switch {
	case now.up && (l.in == nil || now.mtu != l.mtu):
		if err := l.makeRing(now.mtu); err != nil {
			return fmt.Errorf("refresh %s: %w", l.name, err)
		}
		l.mtu = now.mtu
	case l.in == nil: // a ring takes the kernel some time, in which a loop that tries again and again would serve nobody
		return fmt.Errorf("refresh %s: %w", l.name, ErrDown)
	}
	if now.index != l.ifindex {
		if err := l.bind(now.index); err != nil {
			return fmt.Errorf("refresh %s: %w", l.name, err)
		}
	}
	l.mac = now.mac
	if l.long != nil {
		l.long.gathers = gathers(l.fd, l.name)
	}
	if !now.up {
		return fmt.Errorf("refresh %s: %w", l.name, ErrDown)
	}
	return nil
}

// makeRing gives the socket a ring for an MTU, in place of the one that it has; then it has to be bound.
func (l *Packet) makeRing(mtu int) error {
	longest := mtu + ethernetLen
	if l.cfg.Longest > 0 {
		longest = min(longest, l.cfg.Longest)
	}
	if l.in != nil && l.in.longest == longest {
		return nil
	}
	if l.in != nil {
		// The kernel can lose a socket whose interface comes up while its ring is replaced; one that is bound to none cannot be lost, and receives nothing.
		if err := l.bind(0); err != nil {
			return err
		}
		l.stats.Truncated += l.in.truncated
		old := l.in
		l.in = nil
		if err := old.close(l.fd); err != nil {
			return err
		}
	}
	in, err := newRing(l.fd, longest, l.cfg.Buffer)
	if err != nil {
		return err
	}
	l.in = in
	return nil
}

// bind moves the socket to an interface, 0: to none, with the filter in force before the first frame.
func (l *Packet) bind(ifindex int32) error {
	if err := attachFilter(l.fd, l.cfg.Filter.on(ifindex)); err != nil {
		return err
	}
	addr := &unix.SockaddrLinklayer{Protocol: htons(etherType), Ifindex: int(ifindex)}
	if err := unix.Bind(l.fd, addr); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if l.long != nil {
		if err := l.long.bind(ifindex); err != nil {
			return err
		}
	}
	l.ifindex = ifindex
	return nil
}

// Name implements Link.
func (l *Packet) Name() string { return l.name }

// MAC implements Link; Refresh reads it again.
func (l *Packet) MAC() [6]byte { return l.mac }

// MTU implements Link; Refresh reads it again.
func (l *Packet) MTU() int { return l.mtu }

// FD implements Link.
func (l *Packet) FD() int { return l.fd }

// Send implements Link. It borrows the frames until it returns and pads short ones to 60 bytes on the wire.
func (l *Packet) Send(frames []*pool.Frame) (int, error) {
	n, errno := l.send(frames)
	switch errno {
	case 0, unix.EAGAIN, unix.ENOBUFS: // full: the socket's queue, or the interface's
		return n, nil
	case unix.EMSGSIZE:
		return n, ErrTooLong
	}
	return n, l.failed("send", errno)
}

// send sends runs of long frames and of others, each its way. Long ones for which their socket has no room go the other way: that socket is
// the one that FD tells of when there is room again.
func (l *Packet) send(frames []*pool.Frame) (sent int, errno unix.Errno) {
	for sent < len(frames) && errno == 0 {
		run, long := l.run(frames[sent:])
		if long {
			n, _ := l.long.out.send(l.long.fd, run)
			sent += n
			run = run[n:]
		}
		if len(run) > 0 {
			var n int
			n, errno = l.out.send(l.fd, run)
			sent += n
		}
	}
	return sent, errno
}

// run is as many of the frames as go the way of the first.
func (l *Packet) run(frames []*pool.Frame) (run []*pool.Frame, long bool) {
	if l.long == nil {
		return frames, false
	}
	long = l.long.wants(frames[0])
	n := 1
	for n < len(frames) && l.long.wants(frames[n]) == long {
		n++
	}
	return frames[:n], long
}

// Receive implements Link.
func (l *Packet) Receive(dst [][]byte) (int, error) {
	if l.in == nil { // it could not be replaced: what is queued instead would keep FD readable
		for errno := error(nil); errno == nil; {
			_, _, errno = unix.Recvfrom(l.fd, nil, unix.MSG_DONTWAIT)
		}
		return 0, ErrDown
	}
	l.in.giveBack()
	if n := l.in.receive(dst); n > 0 {
		return n, nil
	}
	if errno := pending(l.fd); errno != 0 {
		return 0, l.failed("receive", errno)
	}
	return 0, nil
}

// Return implements Link.
func (l *Packet) Return() {
	if l.in != nil {
		l.in.giveBack()
	}
}

// failed says what an errno means. The socket keeps working when the interface comes back up.
func (l *Packet) failed(op string, errno unix.Errno) error {
	switch errno {
	case unix.ENETDOWN, unix.ENXIO, unix.ENODEV:
		return ErrDown
	}
	return fmt.Errorf("%s on %s: %w", op, l.name, errno)
}

// Stats reads the kernel's counters, too; for the owner's thread.
func (l *Packet) Stats() (PacketStats, error) {
	s, err := unix.GetsockoptTpacketStats(l.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return l.stats, fmt.Errorf("statistics of %s: %w", l.name, os.NewSyscallError("getsockopt", err))
	}
	l.stats.Dropped += uint64(s.Drops) // the kernel's count starts again with every reading
	stats := l.stats
	if l.in != nil {
		stats.Truncated += l.in.truncated
	}
	return stats, nil
}

// Close implements Link. It ends the loan of received frames.
func (l *Packet) Close() error {
	if l.fd < 0 {
		return nil
	}
	err := os.NewSyscallError("close", unix.Close(l.fd))
	l.fd = -1
	if l.long != nil {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(l.long.fd)))
		l.long = nil
	}
	if l.in != nil {
		err = errors.Join(err, l.in.close(-1))
		l.in = nil
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", l.name, err)
	}
	return nil
}

// netInterface is what the kernel says of an interface.
type netInterface struct {
	index int32
	mac   [6]byte
	mtu   int
	up    bool
}

// ifreq is struct ifreq of netdevice(7).
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

// readInterface asks in the network namespace of the socket fd.
func readInterface(fd int, name string) (netInterface, error) {
	var n netInterface
	if len(name) >= unix.IFNAMSIZ {
		return n, fmt.Errorf("interface name of %d characters: %w", len(name), ErrDown)
	}
	for _, ask := range []struct {
		request uintptr
		take    func(data *[24]byte)
	}{
		{unix.SIOCGIFINDEX, func(d *[24]byte) { n.index = *(*int32)(unsafe.Pointer(d)) }},
		{unix.SIOCGIFMTU, func(d *[24]byte) { n.mtu = int(*(*int32)(unsafe.Pointer(d))) }},
		{unix.SIOCGIFFLAGS, func(d *[24]byte) { n.up = *(*uint16)(unsafe.Pointer(d))&unix.IFF_UP != 0 }},
		{unix.SIOCGIFHWADDR, func(d *[24]byte) { n.mac = [6]byte(d[2:8]) }}, // after the address family
	} {
		var req ifreq
		copy(req.name[:], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ask.request, uintptr(unsafe.Pointer(&req)))
		switch errno {
		case 0:
			ask.take(&req.data)
		case unix.ENODEV, unix.ENXIO:
			return n, fmt.Errorf("no such interface: %w", ErrDown)
		default:
			return n, fmt.Errorf("read interface: %w", os.NewSyscallError("ioctl", errno))
		}
	}
	return n, nil
}
