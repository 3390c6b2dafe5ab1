package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// Load is what Drive does to a device.
type Load struct {
	Write  bool
	Random bool // places; else one request after the other
	Bytes  int  // of a request, a multiple of 512
	Depth  int  // requests outstanding
	Ramp   time.Duration
	Time   time.Duration // after Ramp
}

// Driven is what came of it.
type Driven struct {
	Requests uint64
	Took     time.Duration
	Latency  Histogram
	// Retransmits, PoolWaits and PoolGrown are the device's in that time.
	Retransmits, PoolWaits, PoolGrown uint64
}

// driver keeps requests outstanding; each is submitted again from its completion, on the shard's thread.
type driver struct {
	load     Load
	dev      *initiator.Device
	sectors  uint64 // of the device, whole requests only
	next     uint64 // LBA
	dice     *mathrand.PCG
	requests []initiator.Request
	since    []time.Time
	out      int
	count    bool
	stop     bool
	done     chan struct{}
	result   Driven
	err      error
}

// Drive submits requests to a device, without a block layer, and measures them. Writes destroy what is on it.
func Drive(ctx context.Context, dev *initiator.Device, load Load) (*Driven, error) {
	d := &driver{load: load, dev: dev, dice: mathrand.NewPCG(1, 2), done: make(chan struct{})}
	sectors := uint64(load.Bytes / aoe.SectorSize)
	if load.Bytes <= 0 || load.Bytes%aoe.SectorSize != 0 || load.Depth < 1 {
		return nil, fmt.Errorf("requests of %d bytes, %d outstanding: want a multiple of %d, and at least 1", load.Bytes, load.Depth, aoe.SectorSize)
	}
	if d.sectors = dev.Info().Sectors / sectors * sectors; d.sectors == 0 {
		return nil, fmt.Errorf("%s is smaller than %d bytes", dev.Info().Addr, load.Bytes)
	}
	d.requests = make([]initiator.Request, load.Depth)
	d.since = make([]time.Time, load.Depth)
	for i := range d.requests {
		r := &d.requests[i]
		r.Index, r.Sectors, r.Done = i, uint32(sectors), d
		r.Data = make([]byte, load.Bytes)
		if load.Write {
			r.Op = initiator.OpWrite
			rand.Read(r.Data) // never fails
		}
	}
	return d.run(ctx)
}

// run begins, counts after the ramp, and waits for the end of what is outstanding.
func (d *driver) run(ctx context.Context) (*Driven, error) {
	shard := d.dev.Shard()
	do := func(fn func()) error { return shard.Do(context.WithoutCancel(ctx), fn) }
	if err := do(func() {
		for i := range d.requests {
			d.out++
			d.submit(&d.requests[i])
		}
	}); err != nil {
		return nil, err
	}
	pause(ctx, d.load.Ramp)
	before := d.dev.Stats()
	begin := time.Now()
	if err := do(func() { d.count = true }); err != nil {
		return nil, err
	}
	pause(ctx, d.load.Time)
	if err := do(func() { d.count, d.stop = false, true }); err != nil {
		return nil, err
	}
	d.result.Took = time.Since(begin)
	after := d.dev.Stats()
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		return nil, errors.New("requests are not answered")
	}
	d.result.Retransmits = after.Retransmits - before.Retransmits
	d.result.PoolWaits, d.result.PoolGrown = after.PoolWaits-before.PoolWaits, after.PoolGrown-before.PoolGrown
	d.result.Requests = d.result.Latency.Count()
	return &d.result, errors.Join(d.err, ctx.Err())
}

func pause(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}

func (d *driver) submit(r *initiator.Request) {
	if d.load.Random {
		r.LBA = d.dice.Uint64() % (d.sectors / uint64(r.Sectors)) * uint64(r.Sectors)
	} else {
		r.LBA = d.next
		d.next = (d.next + uint64(r.Sectors)) % d.sectors
	}
	d.since[r.Index] = time.Now()
	d.dev.Submit(r)
}

// Complete implements initiator.Completer.
func (d *driver) Complete(r *initiator.Request) {
	if d.count {
		d.result.Latency.Add(time.Since(d.since[r.Index]))
	}
	if r.Err != nil && d.err == nil {
		d.err = fmt.Errorf("request at sector %d: %w", r.LBA, r.Err)
	}
	if !d.stop && d.err == nil {
		d.submit(r)
		return
	}
	if d.out--; d.out == 0 {
		close(d.done)
	}
}
