package initiator

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// call is a function to run on the shard's thread. Calls wait in a stack without a lock, so that no other goroutine, perhaps
// waiting for memory, can stop the loop.
type call struct {
	fn   func()
	done chan struct{}
	next *call
}

// Do runs fn on the shard's thread and waits for it; on that thread itself it just calls fn. If ctx ends first, fn may still run
// later. ErrClosed: the loop has ended and fn was not run.
func (s *Shard) Do(ctx context.Context, fn func()) error {
	select {
	case <-s.done:
		return fmt.Errorf("shard %d: %w", s.cfg.Index, ErrClosed)
	default:
	}
	if unix.Gettid() == s.tid {
		fn()
		return nil
	}
	ran := false
	c := &call{done: make(chan struct{})}
	c.fn = func() { fn(); ran = true }
	for {
		c.next = s.calls.Load()
		if s.calls.CompareAndSwap(c.next, c) {
			break
		}
	}
	if err := s.wake(); err != nil {
		return err
	}
	select {
	case <-c.done:
		if !ran {
			return fmt.Errorf("shard %d: %w", s.cfg.Index, ErrClosed)
		}
		return nil
	case <-s.done:
		select {
		case <-c.done: // it was the last thing the loop did
			if ran {
				return nil
			}
		default:
		}
		return fmt.Errorf("shard %d: %w", s.cfg.Index, ErrClosed)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wake interrupts the loop's sleep. After its end there is nothing to interrupt: the file is closed then.
func (s *Shard) wake() error {
	one := [8]byte{1}
	if _, err := s.waker.Write(one[:]); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("shard %d: wake: %w", s.cfg.Index, err)
	}
	return nil
}

// awake takes the calls, oldest first.
func (s *Shard) awake() {
	var count [8]byte
	// Whatever read says, there is nothing to do about it but look at the calls.
	_, _ = unix.Read(s.wakeFD, count[:])
	s.runCalls()
}

func (s *Shard) runCalls() {
	var first *call
	for c := s.calls.Swap(nil); c != nil; {
		next := c.next
		c.next = first
		first = c
		c = next
	}
	for ; first != nil; first = first.next {
		select {
		case <-s.done:
		default:
			first.fn()
		}
		close(first.done)
	}
}
