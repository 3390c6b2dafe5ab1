package pool

import "sync/atomic"

// Stats is a pool at one moment; its numbers are each right but not of exactly the same instant.
type Stats struct {
	// Ceiling is the most frames there can be, the reserve not counted.
	Ceiling int64
	// Frames is how many there are, Free how many of them nobody holds.
	Frames, Free int64
	// ReserveFree is how many of the reserve nobody holds.
	ReserveFree int64
	// Grown counts frames added after the start.
	Grown int64
	// Waits counts Gets, ReserveWaits GetReserves, that found nothing; Capped those Gets for which only the ceiling was in the way.
	Waits, ReserveWaits, Capped int64
}

// counters are written by the owner and read by anybody.
type counters struct {
	ceiling, frames, free, reserveFree, grown, waits, reserveWaits, capped atomic.Int64
}

// Stats may be called from any goroutine.
func (p *Pool) Stats() Stats {
	c := &p.counts
	return Stats{
		Ceiling: c.ceiling.Load(), Frames: c.frames.Load(), Free: c.free.Load(), ReserveFree: c.reserveFree.Load(),
		Grown: c.grown.Load(), Waits: c.waits.Load(), ReserveWaits: c.reserveWaits.Load(),
		Capped: c.capped.Load(),
	}
}
