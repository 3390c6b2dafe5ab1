package pool

import (
	"errors"
	"fmt"
)

// DefaultMax is the ceiling when Config has none.
const DefaultMax = 256

// frameAlign keeps frames from sharing a cache line.
const frameAlign = 64

// ErrHeld is why a pool could not give its memory back yet.
var ErrHeld = errors.New("frames still held")

// Config sizes a pool.
type Config struct {
	// FrameSize is the length of every buffer in bytes, Ethernet header included.
	FrameSize int
	// Initial is how many frames there are from the start: the window.
	Initial int
	// Max is the ceiling that growth stops at, at least Initial; 0 means DefaultMax, or Initial if that is more.
	Max int
	// Reserve is how many more frames GetReserve has, outside the ceiling.
	Reserve int
}

// Pool is a set of frames of one size. See the package's comment for who may call what.
type Pool struct {
	memory  *memory
	frames  []Frame // the grown ones are frames[:ready]; the reserve is frames[max:]
	max     int
	ready   int // how many below the ceiling have memory behind them
	free    *Frame
	reserve *Frame
	held    int // frames out, of both kinds
	closed  bool
	counts  counters
}

// New allocates what Config says is there from the start. Address space is set aside up to the ceiling; memory only as the
// pool grows.
func New(c Config) (*Pool, error) {
	if c.Max == 0 {
		c.Max = max(DefaultMax, c.Initial)
	}
	if c.FrameSize <= 0 || c.Initial < 0 || c.Reserve < 0 || c.Max < c.Initial || c.Max+c.Reserve == 0 {
		return nil, fmt.Errorf("new pool: frame size %d, initial %d, ceiling %d, reserve %d make no pool", c.FrameSize, c.Initial, c.Max, c.Reserve)
	}
	stride := (c.FrameSize + frameAlign - 1) / frameAlign * frameAlign
	mem, err := mapMemory(stride * (c.Max + c.Reserve))
	if err != nil {
		return nil, fmt.Errorf("new pool: map %d frames of %d bytes: %w", c.Max+c.Reserve, c.FrameSize, err)
	}
	p := &Pool{memory: mem, frames: make([]Frame, c.Max+c.Reserve), max: c.Max}
	for i := range p.frames {
		at := i * stride
		p.frames[i] = Frame{pool: p, buf: mem.bytes[at : at+c.FrameSize : at+c.FrameSize], id: i, reserve: i >= c.Max}
	}
	if err := p.populate(c); err != nil {
		return nil, errors.Join(fmt.Errorf("new pool: %w", err), mem.unmap())
	}
	return p, nil
}

// populate puts memory behind the initial and the reserve frames, lowest number first in its list.
func (p *Pool) populate(c Config) error {
	for i := c.Initial - 1; i >= 0; i-- {
		if err := p.memory.populate(p.frames[i].buf); err != nil {
			return err
		}
		p.push(&p.free, &p.frames[i])
	}
	for i := len(p.frames) - 1; i >= p.max; i-- {
		if err := p.memory.populate(p.frames[i].buf); err != nil {
			return err
		}
		p.push(&p.reserve, &p.frames[i])
	}
	p.ready = c.Initial
	p.counts.ceiling.Store(int64(p.max))
	p.counts.frames.Store(int64(c.Initial))
	p.counts.free.Store(int64(c.Initial))
	p.counts.reserveFree.Store(int64(c.Reserve))
	return nil
}

// Get returns a frame of length 0 with the caller's hold on it. When none is free it grows the pool by one; at the
// ceiling, or without memory to grow, it returns nil and counts a wait: the caller tries again after a Release.
func (p *Pool) Get() *Frame {
	if p.free == nil && !p.grow() {
		p.counts.waits.Add(1)
		return nil
	}
	f := p.take(&p.free)
	p.counts.free.Add(-1)
	return f
}

// GetReserve returns a frame from beside the ceiling, for a copy of a frame that has to take another path while the network holds
// the first; nil when all are out.
func (p *Pool) GetReserve() *Frame {
	if p.reserve == nil || p.closed {
		p.counts.reserveWaits.Add(1)
		return nil
	}
	f := p.take(&p.reserve)
	p.counts.reserveFree.Add(-1)
	return f
}

// grow makes one more frame free.
func (p *Pool) grow() bool {
	if p.closed {
		return false
	}
	if p.ready == p.max {
		p.counts.capped.Add(1)
		return false
	}
	f := &p.frames[p.ready]
	if p.memory.populate(f.buf) != nil {
		return false // tried again at the next Get; until then senders wait, which Stats shows
	}
	p.ready++
	p.push(&p.free, f)
	p.counts.free.Add(1)
	p.counts.frames.Add(1)
	p.counts.grown.Add(1)
	return true
}

func (p *Pool) take(list **Frame) *Frame {
	f := *list
	*list, f.next = f.next, nil
	f.holds, f.len = 1, 0
	p.held++
	return f
}

// push is last in, first out: the frame used last is the one in the cache.
func (p *Pool) push(list **Frame, f *Frame) {
	if poisonFreed {
		f.buf[0] = poison
		for n := 1; n < len(f.buf); n *= 2 {
			copy(f.buf[n:], f.buf[:n])
		}
	}
	f.next, *list = *list, f
}

// put takes back a frame that nobody holds any more.
func (p *Pool) put(f *Frame) {
	p.held--
	if p.closed {
		if p.held == 0 {
			_ = p.unmap() // Release has nobody to tell; a mapping of our own can always be unmapped
		}
		return
	}
	if f.reserve {
		p.push(&p.reserve, f)
		p.counts.reserveFree.Add(1)
		return
	}
	p.push(&p.free, f)
	p.counts.free.Add(1)
}

// Close gives the memory back. Frames still held stay valid: the error matches ErrHeld and names them, Get returns nil from now
// on, and the last Release gives the memory back. Close is idempotent.
func (p *Pool) Close() error {
	if !p.closed {
		p.closed = true
		p.free, p.reserve = nil, nil
		if p.held == 0 {
			return p.unmap()
		}
	}
	if p.held == 0 {
		return nil
	}
	var ids []int
	for i := range p.frames {
		if p.frames[i].holds > 0 {
			ids = append(ids, i)
		}
	}
	return fmt.Errorf("close pool: %w: %v", ErrHeld, ids)
}

func (p *Pool) unmap() error {
	for i := range p.frames {
		p.frames[i].buf = nil // a use after this is a panic, not a fault
	}
	if err := p.memory.unmap(); err != nil {
		return fmt.Errorf("close pool: %w", err)
	}
	return nil
}
