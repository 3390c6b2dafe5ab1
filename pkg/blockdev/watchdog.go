package blockdev

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// ControlTimeout is how long a control call of the kernel may take: far beyond what a healthy one needs, also on a slow
// machine.
const ControlTimeout = 15 * time.Second

// forgiveEvery is how often a call that hangs is looked after.
const forgiveEvery = 10 * time.Millisecond

// ErrAbandoned is an ErrHung of a call that was made and may still come back.
var ErrAbandoned = fmt.Errorf("no answer from the kernel: %w", ErrHung)

// Watchdog runs control calls of the kernel that share a lock there. Each has a goroutine of its own: one that hangs holds
// what the others need, and must not take this process with it. While one hangs, new ones are refused. Safe for concurrent use.
type Watchdog struct {
	Timeout time.Duration // of every call at most; 0: the call's own
	hung    atomic.Int32
}

// Hangs says whether a call has not come back in time and still has not.
func (w *Watchdog) Hangs() bool { return w.hung.Load() > 0 }

// Forgive waits for calls that hang to come back, but no longer than the time.
func (w *Watchdog) Forgive(ctx context.Context, wait time.Duration) {
	for limit := time.Now().Add(wait); w.Hangs() && ctx.Err() == nil && time.Now().Before(limit); {
		time.Sleep(forgiveEvery)
	}
}

// Run calls f in a goroutine that ends when f does, and waits for it, but not for ever: then the error matches ErrAbandoned, and
// late (if not nil) gets f's result, in that goroutine, whenever it comes. ErrHung alone: f was not called.
func (w *Watchdog) Run(what string, f func() error, late func(error)) error {
	return w.RunWithin(ControlTimeout, what, f, late)
}

// RunWithin is Run with less time, or more for calls that can take long by their nature.
func (w *Watchdog) RunWithin(timeout time.Duration, what string, f func() error, late func(error)) error {
	if w.Hangs() {
		return fmt.Errorf("%s: an earlier call has not come back: %w", what, ErrHung)
	}
	if w.Timeout != 0 {
		timeout = min(timeout, w.Timeout)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	const (
		running = iota
		finished
		given
	)
	var state atomic.Int32
	done := make(chan error, 1)
	go func() {
		err := f()
		if state.CompareAndSwap(running, finished) {
			done <- err
			return
		}
		w.hung.Add(-1)
		if late != nil {
			late(err)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	w.hung.Add(1)
	if !state.CompareAndSwap(running, given) {
		w.hung.Add(-1)
		return <-done
	}
	return fmt.Errorf("%s: %w", what, ErrAbandoned)
}
