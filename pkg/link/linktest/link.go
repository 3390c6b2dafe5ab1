package linktest

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const ethernetLen = 14

// Link is one socket of a Network. Send and Receive belong to one thread.
type Link struct {
	net    *Network
	name   string
	mac    [6]byte
	filter func(frame []byte) bool
	inbox  [][]byte
	lent   [][]byte
	held   []held // in the order of until, as long as the profile does not change
	down   bool
	closed bool
	fd     int // -1 until somebody asks
}

// held is a frame that the network still reads.
type held struct {
	frame *pool.Frame
	sent  []byte // what it was
	until time.Time
}

// Name implements link.Link.
func (l *Link) Name() string { return l.name }

// MAC implements link.Link.
func (l *Link) MAC() [6]byte { return l.mac }

// MTU implements link.Link.
func (l *Link) MTU() int {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	return l.net.profile.MTU
}

// SetFilter drops received frames that f, which borrows them, says false to: the part that BPF has for packet links. f must not call
// the network.
func (l *Link) SetFilter(f func(frame []byte) bool) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.filter = f
}

// Pending is how many frames Receive would lend.
func (l *Link) Pending() int {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	return len(l.inbox)
}

// SetDown takes the interface down or up. Going down loses what was not received yet.
func (l *Link) SetDown(down bool) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.down = down
	if down {
		l.net.spare = append(l.net.spare, l.inbox...)
		l.inbox = nil
		l.signal()
	}
}

// FD implements link.Link; it is an eventfd, made at the first call.
func (l *Link) FD() int {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.fd < 0 && !l.closed {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			panic(fmt.Sprintf("linktest: %v", os.NewSyscallError("eventfd", err)))
		}
		l.fd = fd
		if len(l.inbox) > 0 {
			l.signal()
		}
	}
	return l.fd
}

// signal makes the FD readable; with the network's mutex.
func (l *Link) signal() {
	if l.fd < 0 {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	for {
		_, err := unix.Write(l.fd, one[:])
		if err != unix.EINTR {
			return // EAGAIN: it is readable as it is
		}
	}
}

// unsignal undoes signal; with the network's mutex.
func (l *Link) unsignal() {
	if l.fd < 0 {
		return
	}
	var count [8]byte
	for {
		_, err := unix.Read(l.fd, count[:])
		if err != unix.EINTR {
			return
		}
	}
}

// Send implements link.Link. With a ReleaseDelay it holds the frames.
func (l *Link) Send(frames []*pool.Frame) (int, error) {
	l.release(l.net.Now())
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.down || l.closed {
		return 0, link.ErrDown
	}
	now := l.net.clock()
	for i, f := range frames {
		b := f.Bytes()
		if len(b) > l.net.profile.MTU+ethernetLen {
			return i, link.ErrTooLong
		}
		if len(b) < ethernetLen {
			return i, fmt.Errorf("send on %s: frame of %d bytes", l.name, len(b))
		}
		l.hold(f, now)
		if l.net.tap == nil || l.net.tap(b) {
			l.net.route(l, b, now)
		} else {
			l.net.stats.Lost++
		}
	}
	l.net.deliver(now)
	if l.net.real {
		l.net.wake()
	}
	return len(frames), nil
}

func (l *Link) hold(f *pool.Frame, now time.Time) {
	delay := l.net.profile.ReleaseDelay
	if delay == 0 {
		return
	}
	f.Hold()
	l.held = append(l.held, held{frame: f, sent: append(l.net.buffer(), f.Bytes()...), until: now.Add(delay)})
}

// release lets go of the frames held long enough; on the owner's thread.
func (l *Link) release(now time.Time) {
	l.net.mu.Lock()
	n := 0
	for n < len(l.held) && (l.closed || !l.held[n].until.After(now)) {
		l.net.check(l, &l.held[n])
		l.net.spare = append(l.net.spare, l.held[n].sent)
		n++
	}
	due := l.held[:n]
	l.held = l.held[n:]
	l.net.mu.Unlock()
	for i := range due {
		due[i].frame.Release()
		due[i] = held{}
	}
}

// Return implements link.Link: the frames are copies.
func (*Link) Return() {}

// Receive implements link.Link.
func (l *Link) Receive(dst [][]byte) (int, error) {
	l.release(l.net.Now())
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.net.spare = append(l.net.spare, l.lent...)
	clear(l.lent)
	l.lent = l.lent[:0]
	if l.down || l.closed {
		l.unsignal()
		return 0, link.ErrDown
	}
	n := copy(dst, l.inbox)
	l.lent = append(l.lent, l.inbox[:n]...)
	rest := copy(l.inbox, l.inbox[n:])
	clear(l.inbox[rest:])
	l.inbox = l.inbox[:rest]
	if rest == 0 {
		l.unsignal()
	}
	return n, nil
}

// Close implements link.Link; on the owner's thread, since it releases the held frames.
func (l *Link) Close() error {
	l.net.mu.Lock()
	closed := l.closed
	l.closed = true
	fd := l.fd
	l.fd = -1
	l.inbox, l.lent = nil, nil
	l.net.mu.Unlock()
	if closed {
		return nil
	}
	l.release(l.net.Now())
	if fd >= 0 {
		return os.NewSyscallError("close", unix.Close(fd))
	}
	return nil
}
