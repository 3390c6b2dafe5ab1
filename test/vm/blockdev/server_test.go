//go:build vm

package blockdev

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// disk is memory behind a queue. It answers newest first, so that the kernel sees completions out of order.
type disk struct {
	mem []byte

	mu      sync.Mutex
	mute    bool // take requests, answer none
	broken  bool // answer all with EIO
	flushes int
	fuas    int
	trims   int
}

// server is the event loop of one queue.
type server struct {
	t    *testing.T
	disk *disk
	q    blockdev.Queue
	wake int           // eventfd
	end  chan struct{} // closed when the loop has ended

	ending atomic.Bool
	held   []*blockdev.Request // taken while mute
}

// serve starts the loop; it ends when the kernel's end is gone, or with stop.
func serve(t *testing.T, d *disk, q blockdev.Queue) *server {
	t.Helper()
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, disk: d, q: q, wake: wake, end: make(chan struct{})}
	ready := make(chan struct{})
	go s.loop(ready)
	<-ready
	return s
}

// stop ends the loop.
func (s *server) stop() {
	s.ending.Store(true)
	s.nudge()
	<-s.end
}

// nudge has the loop look whether it has to end, and whether the disk speaks again.
func (s *server) nudge() {
	if _, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		s.t.Errorf("wake: %v", err)
	}
}

func (s *server) loop(ready chan<- struct{}) {
	runtime.LockOSThread()
	defer close(s.end)
	fds := []unix.PollFd{{Fd: int32(s.q.FD()), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	var requests []*blockdev.Request
	if _, err := s.q.Flush(); err != nil { // the queue learns which thread is its own
		s.t.Errorf("first flush: %v", err)
	}
	close(ready)
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			s.t.Errorf("poll: %v", err)
			return
		}
		var b [8]byte
		_, _ = unix.Read(s.wake, b[:]) // EAGAIN: it was not that
		if s.ending.Load() {
			return
		}
		requests = append(requests[:0], s.release()...)
		for again := true; again; {
			var err error
			requests, err = s.q.Poll(requests)
			answered := len(requests) > 0 && !s.disk.isMute()
			for i := len(requests) - 1; i >= 0; i-- {
				s.answer(requests[i])
			}
			requests = requests[:0]
			more, flushErr := s.q.Flush()
			fds[0].Events = unix.POLLIN
			if more {
				fds[0].Events |= unix.POLLOUT
			}
			if errors.Is(err, io.EOF) || errors.Is(flushErr, io.EOF) {
				return
			}
			if err != nil || flushErr != nil {
				s.t.Errorf("queue: %v, %v", err, flushErr)
				return
			}
			again = s.q.Stalled() && answered
		}
		if s.q.Stalled() {
			fds[0].Events &^= unix.POLLIN // until the socket takes more answers
		}
	}
}

// release returns the held requests once the disk speaks again.
func (s *server) release() []*blockdev.Request {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if s.disk.mute {
		return nil
	}
	held := s.held
	s.held = nil
	return held
}

func (s *server) answer(r *blockdev.Request) {
	d := s.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mute {
		s.held = append(s.held, r)
		return
	}
	var errno syscall.Errno
	switch r.Op {
	case blockdev.OpRead, blockdev.OpWrite:
		if d.broken || r.Offset+uint64(r.Length) > uint64(len(d.mem)) {
			errno = syscall.EIO
		} else if r.Op == blockdev.OpRead {
			errno = d.load(r)
		} else {
			errno = d.store(r)
		}
		if r.FUA {
			d.fuas++
		}
	case blockdev.OpFlush:
		d.flushes++
	case blockdev.OpTrim, blockdev.OpWriteZeroes:
		clear(d.mem[r.Offset : r.Offset+uint64(r.Length)])
		d.trims++
	}
	s.q.Complete(r, errno)
}

func (d *disk) isMute() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mute
}

// fail has the disk answer again, with errors.
func (d *disk) fail() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute, d.broken = false, true
}

func (d *disk) setMute(mute bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute = mute
}

// load answers a read; large ones in two parts where the kernel holds the data.
func (d *disk) load(r *blockdev.Request) syscall.Errno {
	data := d.mem[r.Offset:][:r.Length]
	if r.Pages == nil {
		copy(r.Data, data)
		return 0
	}
	return transfer(r.Pages, data, true)
}

// transfer moves data to pages, or from there, in two parts in one system call where there are two.
func transfer(pages blockdev.Pages, data []byte, write bool) syscall.Errno {
	half := len(data) / 2 &^ 511
	var ts []uring.Transfer
	for from, part := range map[int][]byte{0: data[:half], half: data[half:]} {
		fd, at := pages.Place(int64(from))
		ts = append(ts, uring.Transfer{FD: fd, Off: at, Data: part, Write: write})
	}
	batch, err := uring.NewBatch(2)
	if err != nil {
		return errnoOf(err)
	}
	batch.Run(ts)
	err = batch.Close()
	for _, t := range ts {
		err = errors.Join(err, t.Err)
	}
	return errnoOf(err)
}

// store answers a write.
func (d *disk) store(r *blockdev.Request) syscall.Errno {
	data := d.mem[r.Offset:][:r.Length]
	if r.Pages == nil {
		copy(data, r.Data)
		return 0
	}
	return transfer(r.Pages, data, false)
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
	case !errors.As(err, &errno):
		errno = syscall.EIO
	}
	return errno
}
