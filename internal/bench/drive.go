package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// Load is what Drive does to a device.
type Load struct {
	Writes int  // of 100 requests
	Random bool // places; else one request after the other
	Bytes  int  // of a request, a multiple of 512
	Depth  int  // requests outstanding, on each device
	Ramp   time.Duration
	Time   time.Duration // after Ramp
	// Requests is how many more are done after Time, until there are so many in all; 0: none.
	Requests uint64
}

// Driven is what came of it.
type Driven struct {
	Requests uint64
	Took     time.Duration
	Latency  Histogram
	// Retransmits, PoolWaits, PoolCapped and PoolGrown are the devices' in that time, PoolFrames and PoolCeiling those at its end.
	Retransmits, PoolWaits, PoolCapped, PoolGrown uint64
	PoolFrames, PoolCeiling                       int
	// Allocations is how many objects this process allocated in that time.
	Allocations uint64
	// Longest is what the slowest request took, Timeout the longest after which a path sent a frame again,
	// at the beginning or at the end.
	Longest, Timeout time.Duration
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
	answered atomic.Uint64
	done     chan struct{}
	result   Driven
	err      error
}

// newDriver readies the load for a device.
func newDriver(dev *initiator.Device, load Load) (*driver, error) {
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
		if load.Writes > 0 {
			rand.Read(r.Data) // never fails
		}
	}
	return d, nil
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
	switch {
	case d.load.Writes == 100, d.load.Writes > 0 && d.dice.Uint64()%100 < uint64(d.load.Writes):
		r.Op = initiator.OpWrite
	default:
		r.Op = initiator.OpRead
	}
	d.since[r.Index] = time.Now()
	d.dev.Submit(r)
}

// Complete implements initiator.Completer.
func (d *driver) Complete(r *initiator.Request) {
	if d.count {
		took := time.Since(d.since[r.Index])
		d.result.Latency.Add(took)
		d.result.Longest = max(d.result.Longest, took)
		d.answered.Add(1)
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
