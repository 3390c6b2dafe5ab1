package bench

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/heap"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// fleet is the drivers of several devices that are measured together.
type fleet []*driver

// Drive submits requests to devices, without a block layer, and measures them together. Writes destroy what is on them.
func Drive(ctx context.Context, load Load, devices ...*initiator.Device) (*Driven, error) {
	var f fleet
	for _, dev := range devices {
		d, err := newDriver(dev, load)
		if err != nil {
			return nil, err
		}
		f = append(f, d)
	}
	return f.run(ctx, load)
}

// run begins, counts after the ramp, and waits for the end of what is outstanding.
func (f fleet) run(ctx context.Context, load Load) (*Driven, error) {
	if err := f.each(ctx, func(d *driver) {
		for i := range d.requests {
			d.out++
			d.submit(&d.requests[i])
		}
	}); err != nil {
		return nil, err
	}
	pause(ctx, load.Ramp)
	before := f.stats()
	timeout := f.timeout()
	runtime.GC() // as all allocations so far count then
	allocated := heap.Allocations()
	begin := time.Now()
	if err := f.each(ctx, func(d *driver) { d.count = true }); err != nil {
		return nil, err
	}
	pause(ctx, load.Time)
	for f.answered() < load.Requests && ctx.Err() == nil && !f.ended() {
		pause(ctx, 50*time.Millisecond)
	}
	runtime.GC()
	allocated = heap.Allocations() - allocated
	if err := f.each(ctx, func(d *driver) { d.count, d.stop = false, true }); err != nil {
		return nil, err
	}
	result := &Driven{Took: time.Since(begin), Timeout: timeout, Allocations: allocated}
	after := f.stats()
	result.Timeout = max(result.Timeout, f.timeout())
	err := f.wait()
	for _, d := range f {
		result.Latency.Merge(&d.result.Latency)
		result.Longest = max(result.Longest, d.result.Longest)
		err = errors.Join(err, d.err)
	}
	result.Requests = result.Latency.Count()
	result.Retransmits = after.Retransmits - before.Retransmits
	result.PoolWaits, result.PoolGrown = after.PoolWaits-before.PoolWaits, after.PoolGrown-before.PoolGrown
	result.PoolCapped = after.PoolCapped - before.PoolCapped
	result.PoolFrames, result.PoolCeiling = after.PoolFrames, after.PoolCeiling
	return result, errors.Join(err, ctx.Err())
}

// each calls fn for every driver on its shard's thread.
func (f fleet) each(ctx context.Context, fn func(*driver)) error {
	for _, d := range f {
		if err := d.dev.Shard().Do(context.WithoutCancel(ctx), func() { fn(d) }); err != nil {
			return err
		}
	}
	return nil
}

// stats is the sum of the devices'.
func (f fleet) stats() (sum initiator.Stats) {
	for _, d := range f {
		s := d.dev.Stats()
		sum.Retransmits += s.Retransmits
		sum.PoolWaits += s.PoolWaits
		sum.PoolCapped += s.PoolCapped
		sum.PoolGrown += s.PoolGrown
		sum.PoolFrames += s.PoolFrames
		sum.PoolCeiling += s.PoolCeiling
	}
	return sum
}

// timeout is the longest of any path.
func (f fleet) timeout() (longest time.Duration) {
	for _, d := range f {
		for _, p := range d.dev.Paths() {
			longest = max(longest, p.Timeout)
		}
	}
	return longest
}

// answered is how many requests have been counted so far.
func (f fleet) answered() (n uint64) {
	for _, d := range f {
		n += d.answered.Load()
	}
	return n
}

// ended says whether a driver has given up, with an error.
func (f fleet) ended() bool {
	for _, d := range f {
		select {
		case <-d.done:
			return true
		default:
		}
	}
	return false
}

// wait waits for what is outstanding.
func (f fleet) wait() error {
	late := time.After(time.Minute)
	for _, d := range f {
		select {
		case <-d.done:
		case <-late:
			return errors.New("requests are not answered")
		}
	}
	return nil
}
