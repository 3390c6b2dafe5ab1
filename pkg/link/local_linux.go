package link

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// LocalMTU is the MTU of local links: 127 sectors fit in a frame.
	LocalMTU = 65535
	// localBatch bounds the receive buffers of a local link to 2 MiB.
	localBatch = 32
	localName  = "local"
)

// LocalTargetMAC is the address of every target on its end of a local link. It is a locally administered one, that no card has.
var LocalTargetMAC = [6]byte{0x02, 'a', 'o', 'e', 0, 0}

// Local is a Link over a unix socket between an initiator and a target on the same host, which no network card would bring
// together. A message is a whole frame, with the addresses it would have on the wire. It copies: frames are free again when
// Send returns.
type Local struct {
	fd  int
	mac [6]byte
	out *sender
	in  *receiver
}

var _ Link = (*Local)(nil)

// DialLocal connects to the target that listens at path; mac is the source of the frames that will be sent, for the target's
// admission check. The error matches ErrDown when nobody listens there.
func DialLocal(path string, mac [6]byte) (*Local, error) {
	fd, err := localSocket()
	if err != nil {
		return nil, fmt.Errorf("dial local link %s: %w", path, err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		// EAGAIN: its backlog is full
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN) {
			err = fmt.Errorf("%w: %w", ErrDown, err)
		}
		return nil, errors.Join(fmt.Errorf("dial local link %s: %w", path, err), unix.Close(fd))
	}
	l, err := newLocal(fd, mac)
	if err != nil {
		return nil, fmt.Errorf("dial local link %s: %w", path, err)
	}
	return l, nil
}

func localSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// newLocal takes the connected socket fd, and closes it if it fails.
func newLocal(fd int, mac [6]byte) (*Local, error) {
	if err := setBuffers(fd, defaultBuffer); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	in, err := newReceiver(localBatch, LocalMTU+ethernetLen)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Local{fd: fd, mac: mac, out: newSender(localBatch, false), in: in}, nil
}

// Name implements Link.
func (l *Local) Name() string { return localName }

// MAC implements Link.
func (l *Local) MAC() [6]byte { return l.mac }

// MTU implements Link.
func (l *Local) MTU() int { return LocalMTU }

// FD implements Link.
func (l *Local) FD() int { return l.fd }

// Send implements Link. It borrows the frames until it returns.
func (l *Local) Send(frames []*pool.Frame) (int, error) {
	fit := len(frames)
	for i, f := range frames {
		if len(f.Bytes()) > LocalMTU+ethernetLen { // a unix socket would take it
			fit = i
			break
		}
	}
	n, errno := l.out.send(l.fd, frames[:fit])
	switch {
	case errno == unix.EAGAIN || errno == unix.ENOBUFS:
		return n, nil
	case errno != 0:
		return n, l.failed("send", errno)
	case fit < len(frames):
		return n, ErrTooLong
	}
	return n, nil
}

// Return implements link.Link: the frames are copies.
func (*Local) Return() {}

// Receive implements Link. ErrDown is for good here: a new link has to be dialled.
func (l *Local) Receive(dst [][]byte) (int, error) {
	got, errno := l.in.receive(l.fd, len(dst))
	if errno != 0 {
		if errno == unix.EAGAIN {
			return 0, nil
		}
		return 0, l.failed("receive", errno)
	}
	n := 0
	for i := range got {
		b, cut := l.in.message(i)
		if len(b) == 0 && n == 0 { // the peer closed; nobody sends empty messages
			return 0, ErrDown
		}
		if len(b) == 0 {
			break
		}
		if cut {
			continue
		}
		dst[n] = b
		n++
	}
	return n, nil
}

func (l *Local) failed(op string, errno unix.Errno) error {
	switch errno {
	case unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN:
		return ErrDown
	}
	return fmt.Errorf("%s on local link: %w", op, errno)
}

// Close implements Link. It ends the loan of received frames.
func (l *Local) Close() error {
	if l.fd < 0 {
		return nil
	}
	err := errors.Join(os.NewSyscallError("close", unix.Close(l.fd)), l.in.close())
	l.fd = -1
	if err != nil {
		return fmt.Errorf("close local link: %w", err)
	}
	return nil
}
