package initiator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Reconfirm has the target prove its identity again, as after a change of its size, and returns what it says then.
func (d *Device) Reconfirm(ctx context.Context) (Info, error) {
	var before uint64
	if err := d.shard.Do(ctx, func() {
		before = d.core.Proofs()
		d.core.Reconfirm(d.shard.now())
	}); err != nil {
		return Info{}, fmt.Errorf("reconfirm %s: %w", d.cfg.Addr, err)
	}
	var info Info
	proved := false
	err := d.poll(ctx, func() bool {
		d.catchUp()
		info, proved = d.core.Info(), d.core.Proofs() != before
		return proved
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = ErrNoAnswer
	}
	if err != nil {
		return Info{}, fmt.Errorf("reconfirm %s: %w", d.cfg.Addr, err)
	}
	return info, nil
}

// Fail completes all pending requests with ErrIO; new ones are taken as before.
func (d *Device) Fail(ctx context.Context) error {
	if err := d.shard.Do(ctx, func() { d.core.Fail(d.shard.now(), ErrIO) }); err != nil {
		return fmt.Errorf("fail %s: %w", d.cfg.Addr, err)
	}
	return nil
}

// Detach waits until nothing is pending, closes the session and lets go of the target. While requests are pending the error matches
// ErrPending when ctx ends, and the device goes on as before. With force pending requests are completed with ErrIO. A session is closed only if
// the target answers before ctx ends; the next OPEN replaces it anyway. Idempotent.
func (d *Device) Detach(ctx context.Context, force bool) error {
	var closed atomic.Bool
	err := d.poll(ctx, func() bool {
		if force {
			d.core.Fail(d.shard.now(), ErrIO)
		}
		if d.core.Pending() > 0 {
			return false
		}
		d.core.Close(d.shard.now())
		closed.Store(true)
		return true
	})
	switch {
	case errors.Is(err, ErrClosed):
		return nil
	case err != nil && !closed.Load():
		return fmt.Errorf("detach %s: %w", d.cfg.Addr, errors.Join(ErrPending, err))
	}
	if err := d.poll(ctx, func() bool { return d.core.Closed(d.shard.now()) }); err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("detach %s: %w", d.cfg.Addr, err)
	}
	if err := d.shard.discard(d); err != nil {
		return fmt.Errorf("detach %s: %w", d.cfg.Addr, err)
	}
	return nil
}

// poll asks on the shard's thread until the answer is yes, or ctx ends.
func (d *Device) poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		yes := false
		if err := d.shard.Do(ctx, func() { yes = done() }); err != nil {
			return err
		}
		if yes {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
