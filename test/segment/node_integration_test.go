//go:build integration

package segment

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	lunSectors = lunBytes / aoe.SectorSize
	// piece is what one request writes, in sectors.
	piece = 8
	// hammerDepth is how many writes a node that hammers has out.
	hammerDepth = 32
	// loadWorkers work on the LUN at once, each on a part of its own.
	loadWorkers = 16
)

// Node is a host with an initiator. Its exported methods are what the test can ask it for.
type Node struct {
	args   StartArgs
	shard  *initiator.Shard
	device *initiator.Device
	uuid   aoe.UUID
	number uint64 // of the next attachment's first OPEN

	hammer *hammer
	load   *load
}

// Start brings the interfaces up and starts the loop.
func (p *Node) Start(args StartArgs, macs *[]aoe.MAC) (err error) {
	p.args = args
	if *macs, err = setUp(args.Interfaces); err != nil {
		return err
	}
	_, _ = crand.Read(p.uuid[:]) // never fails
	p.number = 1
	p.shard, err = initiator.NewShard(initiator.ShardConfig{Index: 1, Interfaces: args.Interfaces})
	return err
}

// Attach attaches the LUN.
func (p *Node) Attach(_ struct{}, _ *struct{}) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience/2)
	defer cancel()
	p.device, err = p.shard.Attach(ctx, initiator.DeviceConfig{Addr: lunAddr, Generation: generation, UUID: p.uuid, Incarnation: p.number})
	return err
}

// Detach lets go of it, whatever is out; not attached is success.
func (p *Node) Detach(_ struct{}, _ *struct{}) error {
	if p.device == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond) // a session is closed only if the target answers
	defer cancel()
	err := p.device.Detach(ctx, true)
	p.number = p.device.State().Incarnation + 1
	p.device = nil
	return err
}

// Stats are the device's counters.
func (p *Node) Stats(_ struct{}, stats *initiator.Stats) error {
	*stats = p.device.Stats()
	return nil
}

// answer receives what became of one request.
type answer chan struct{}

// Complete implements initiator.Completer.
func (a answer) Complete(*initiator.Request) { a <- struct{}{} }

// do runs one request.
func (p *Node) do(r *initiator.Request) error {
	done := make(answer, 1)
	r.Done = done
	if err := p.shard.Do(context.Background(), func() { p.device.Submit(r) }); err != nil {
		return err
	}
	<-done
	return r.Err
}

// fill is what a node writes: who, what for, and where.
func fill(data []byte, mark, lba uint64) {
	for i := 0; i < len(data); i += 16 {
		binary.LittleEndian.PutUint64(data[i:], mark)
		binary.LittleEndian.PutUint64(data[i+8:], lba*aoe.SectorSize+uint64(i))
	}
}

// Fill writes the whole LUN and makes it durable.
func (p *Node) Fill(mark uint64, _ *struct{}) error {
	data := make([]byte, lunBytes)
	fill(data, mark, 0)
	if err := p.do(&initiator.Request{Op: initiator.OpWrite, Sectors: lunSectors, Data: data}); err != nil {
		return err
	}
	return p.do(&initiator.Request{Op: initiator.OpFlush})
}

// Verify reads the whole LUN: it has what Fill wrote.
func (p *Node) Verify(mark uint64, _ *struct{}) error {
	got, want := make([]byte, lunBytes), make([]byte, lunBytes)
	if err := p.do(&initiator.Request{Op: initiator.OpRead, Sectors: lunSectors, Data: got}); err != nil {
		return err
	}
	fill(want, mark, 0)
	return compare(got, want)
}

func compare(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range got {
		if got[i] != want[i] {
			i &^= 15
			return fmt.Errorf("byte %d differs: % x, want % x", i, got[i:i+16], want[i:i+16])
		}
	}
	return errors.New("lengths differ")
}

// hammer writes as fast as it can, whatever becomes of it, until it is stopped.
type hammer struct {
	p        *Node
	mark     uint64
	stop     atomic.Bool
	group    sync.WaitGroup
	ok, fail atomic.Uint64
}

// HammerStats count a hammer's writes.
type HammerStats struct{ OK, Failed uint64 }

// blow is one of a hammer's writes. All is the shard's.
type blow struct {
	h    *hammer
	r    initiator.Request
	dice *rand.Rand
}

// Hammer starts to write all over the LUN.
func (p *Node) Hammer(mark uint64, _ *struct{}) error {
	h := &hammer{p: p, mark: mark}
	p.hammer = h
	return p.shard.Do(context.Background(), func() {
		for i := range hammerDepth {
			b := &blow{h: h, dice: rand.New(rand.NewPCG(mark, uint64(i)))}
			b.r = initiator.Request{Op: initiator.OpWrite, Sectors: piece, Data: make([]byte, piece*aoe.SectorSize), Done: b}
			h.group.Add(1)
			b.strike()
		}
	})
}

func (b *blow) strike() {
	b.r.LBA = uint64(b.dice.IntN(lunSectors/piece)) * piece
	fill(b.r.Data, b.h.mark, b.r.LBA)
	b.h.p.device.Submit(&b.r)
}

// Complete implements initiator.Completer.
func (b *blow) Complete(r *initiator.Request) {
	switch {
	case b.h.stop.Load():
		b.h.group.Done()
	case r.Err == nil:
		b.h.ok.Add(1)
		b.strike()
	default:
		b.h.fail.Add(1)
		time.AfterFunc(time.Millisecond, func() { // not from here: it may fail at once again
			if err := b.h.p.shard.Do(context.Background(), b.again); err != nil {
				panic(err)
			}
		})
	}
}

func (b *blow) again() {
	if b.h.stop.Load() {
		b.h.group.Done()
		return
	}
	b.strike()
}

// Hammered says what a hammer has done so far.
func (p *Node) Hammered(_ struct{}, stats *HammerStats) error {
	*stats = HammerStats{OK: p.hammer.ok.Load(), Failed: p.hammer.fail.Load()}
	return nil
}

// Rest stops the hammer; what is out is given up if the target does not answer.
func (p *Node) Rest(_ struct{}, stats *HammerStats) error {
	p.hammer.stop.Store(true)
	done := make(chan struct{})
	go func() { p.hammer.group.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Millisecond):
		if err := p.device.Fail(context.Background()); err != nil {
			return err
		}
		<-done
	}
	return p.Hammered(struct{}{}, stats)
}

// load writes and reads at random and compares.
type load struct {
	stop  atomic.Bool
	ops   atomic.Uint64
	group sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// Load starts a verified load.
func (p *Node) Load(_ struct{}, _ *struct{}) error {
	l := new(load)
	p.load = l
	for w := range loadWorkers {
		l.group.Go(func() {
			if err := p.work(l, uint64(w)); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.err = errors.Join(l.err, fmt.Errorf("worker %d: %w", w, err))
			}
		})
	}
	return nil
}

// work goes on until the load is stopped.
func (p *Node) work(l *load, w uint64) error {
	const sectors = lunSectors / loadWorkers
	dice := rand.New(rand.NewPCG(w, 7))
	want, got := make([]byte, sectors*aoe.SectorSize), make([]byte, sectors*aoe.SectorSize)
	base := w * sectors
	if err := p.do(&initiator.Request{Op: initiator.OpWrite, LBA: base, Sectors: sectors, Data: want}); err != nil {
		return err
	}
	for !l.stop.Load() {
		n := 1 + dice.IntN(32)
		at := dice.IntN(sectors - n)
		part, read := want[at*aoe.SectorSize:][:n*aoe.SectorSize], got[:n*aoe.SectorSize]
		r := &initiator.Request{Op: initiator.OpWrite, LBA: base + uint64(at), Sectors: uint32(n), Data: part}
		if dice.IntN(2) == 0 {
			r.Op, r.Data = initiator.OpRead, read
		} else {
			fill(part, dice.Uint64(), r.LBA)
		}
		if err := p.do(r); err != nil {
			return err
		}
		if r.Op == initiator.OpRead {
			if err := compare(read, part); err != nil {
				return fmt.Errorf("%d sectors at %d: %w", n, r.LBA, err)
			}
		}
		l.ops.Add(1)
	}
	return nil
}

// Loaded says how many operations the load has done; an error is the load's, or a mismatch.
func (p *Node) Loaded(_ struct{}, ops *uint64) error {
	*ops = p.load.ops.Load()
	p.load.mu.Lock()
	defer p.load.mu.Unlock()
	return p.load.err
}

// Unload stops the load.
func (p *Node) Unload(_ struct{}, ops *uint64) error {
	p.load.stop.Store(true)
	p.load.group.Wait()
	return p.Loaded(struct{}{}, ops)
}
