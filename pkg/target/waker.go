package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/brief"
)

// waker lets other goroutines end the poll of a loop. Waking a closed one does nothing.
type waker struct {
	file   *os.File // an eventfd; os.File makes a late write after close harmless
	asleep atomic.Bool
	fds    [2]unix.PollFd

	turns    Turns
	readable func() bool // with turns
}

// newTurnWaker makes a waker for a loop that is a task of a simulation; readable stands for the descriptor.
func newTurnWaker(t Turns, readable func() bool) *waker { return &waker{turns: t, readable: readable} }

// newWaker makes a waker for a loop that polls fd, which it borrows.
func newWaker(fd int) (*waker, error) {
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &waker{
		file: os.NewFile(uintptr(event), "eventfd"),
		fds:  [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(event), Events: unix.POLLIN}},
	}, nil
}

// one is what an eventfd takes.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// wake ends a sleep, or keeps the next one from beginning if the loop announced it already.
func (w *waker) wake() {
	if w.asleep.CompareAndSwap(true, false) {
		_, _ = w.file.Write(one) // it fails when the loop is gone
	}
}

// sleep returns when fd has events or somebody wakes, and at once if ready says so after wake began to work.
func (w *waker) sleep(events int16, ready func() bool) error {
	if w.turns != nil {
		w.turns.Await(func() bool { return ready() || w.readable() })
		return nil
	}
	w.asleep.Store(true)
	defer w.asleep.Store(false)
	if ready() {
		return nil
	}
	w.fds[0].Events = events
	if errno := w.poll(); errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("poll: %w", errno)
	}
	if w.fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(int(w.fds[1].Fd), count[:]) // empty is as good
	}
	return nil
}

// poll waits: in the midst of work briefly, without telling the runtime, and only then for as long as it takes.
func (w *waker) poll() syscall.Errno {
	if n, errno := brief.Poll(w.fds[:], brief.Wait); n > 0 || errno != 0 {
		return errno
	}
	_, err := unix.Poll(w.fds[:], -1)
	errno, _ := errors.AsType[syscall.Errno](err)
	return errno
}

func (w *waker) close() error {
	if w.turns != nil {
		return nil
	}
	return w.file.Close()
}
