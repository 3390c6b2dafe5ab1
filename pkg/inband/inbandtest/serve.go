package inbandtest

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// sendMost bounds the frames waiting for a link that is full.
const sendMost = 8192

// Server answers for its targets over one link.
type Server struct {
	link    link.Link
	targets map[aoe.Addr]*Target
	frames  *pool.Pool
	queue   []*pool.Frame
	stop    atomic.Bool
	done    chan error

	// Heard counts requests, Said answers.
	Heard, Said atomic.Uint64
}

// Serve answers until Close. It takes the link.
func Serve(l link.Link, targets ...*Target) (*Server, error) {
	frames, err := pool.New(pool.Config{FrameSize: l.MTU() + aoe.EthernetLen, Initial: 16, Max: sendMost})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &Server{link: l, targets: map[aoe.Addr]*Target{}, frames: frames, done: make(chan error, 1)}
	for _, t := range targets {
		s.targets[t.Addr] = t
	}
	go func() { s.done <- s.run() }()
	return s, nil
}

// Close ends the server and waits for it.
func (s *Server) Close() error {
	s.stop.Store(true)
	return errors.Join(<-s.done, s.link.Close(), s.frames.Close())
}

func (s *Server) run() error {
	var batch [64][]byte
	for !s.stop.Load() {
		if len(s.queue) == 0 {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(s.link.FD()), Events: unix.POLLIN}}, 5); err != nil && err != unix.EINTR {
				return os.NewSyscallError("poll", err)
			}
		}
		n, err := s.link.Receive(batch[:])
		if err != nil && !errors.Is(err, link.ErrDown) {
			return err
		}
		for _, b := range batch[:n] {
			s.take(b)
		}
		s.send()
	}
	for _, f := range s.queue {
		f.Release()
	}
	return nil
}

func (s *Server) take(b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil || f.IsResponse() {
		return
	}
	s.Heard.Add(1)
	if t := s.targets[f.Addr()]; t != nil {
		s.answer(t, f)
		return
	}
	for _, t := range s.targets {
		if f.Addr().Matches(t.Addr) {
			s.answer(t, f)
		}
	}
}

func (s *Server) answer(t *Target, f aoe.Frame) {
	out := s.frames.Get()
	if out == nil {
		return // as a socket that is full does
	}
	clear(out.Buf())
	n := t.answer(out.Buf(), f, s.link.MAC(), s.link.MTU())
	if n == 0 {
		out.Release()
		return
	}
	out.SetLen(aoe.Pad(out.Buf(), n))
	s.queue = append(s.queue, out)
}

func (s *Server) send() {
	if len(s.queue) == 0 {
		return
	}
	n, err := s.link.Send(s.queue)
	if err != nil {
		n = len(s.queue)
	}
	s.Said.Add(uint64(n))
	for _, f := range s.queue[:n] {
		f.Release()
	}
	s.queue = append(s.queue[:0], s.queue[n:]...)
}
