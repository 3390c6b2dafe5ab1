package initiator

import (
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// copies gathers what is to be copied between frames and pages that the kernel has, so that all of it takes one system call: of writes until their
// frames are handed out, of reads as long as the caller of Receive lets Core have the frames it received.
type copies struct {
	batch     *uring.Batch
	transfers []uring.Transfer
	of        []staged // what each is for
}

// staged is a part of a request that is still to be copied.
type staged struct {
	req   *Request
	units uint32      // of a read: what Request.left waits for
	frame *pool.Frame // of a write: where its data go
	tag   uint32      // of a write
}

// newCopies has room for size of them; batch may be nil.
func newCopies(batch *uring.Batch, size int) copies {
	if batch == nil {
		batch = new(uring.Batch)
	}
	return copies{batch: batch, transfers: make([]uring.Transfer, 0, size), of: make([]staged, 0, size)}
}

// stage notes that b is to be copied to, or from, the pages of a request, from that sector on.
func (c *copies) stage(s staged, b []byte, sector uint32) {
	fd, at := s.req.Pages.Place(int64(sector) * aoe.SectorSize)
	c.transfers = append(c.transfers, uring.Transfer{FD: fd, Data: b, Off: at, Write: s.req.Op == OpRead})
	c.of = append(c.of, s)
	s.req.staged++
}

// fetch copies a part of a write's data, from that sector on, to b, which is in the entry's frame; at once, or when it is settled.
func (c *Core) fetch(e *entry, b []byte) {
	if e.req.Pages == nil {
		copy(b, e.req.Data[int(e.from)*aoe.SectorSize:])
		return
	}
	c.copies.stage(staged{req: e.req, frame: e.frame, tag: e.tag}, b, e.from)
}

// store takes a part of a read's data and answers units of the request, at once or when that is settled.
func (c *Core) store(r *Request, payload []byte, sector, units uint32) {
	if r.Pages == nil {
		copy(r.Data[int(sector)*aoe.SectorSize:], payload)
		c.answered(r, units, nil)
		return
	}
	c.copies.stage(staged{req: r, units: units}, payload, sector)
}

// settle copies what is staged.
func (c *Core) settle() {
	k := &c.copies
	if len(k.transfers) == 0 {
		return
	}
	k.batch.Run(k.transfers)
	for i, s := range k.of {
		s.req.staged--
		if k.transfers[i].Err != nil {
			k.transfers[i].Run() // io_uring needs memory that a system call does not
		}
		failed := k.transfers[i].Err != nil
		k.transfers[i], k.of[i] = uring.Transfer{}, staged{}
		switch {
		case s.frame == nil && failed:
			c.answered(s.req, s.units, ErrIO)
		case s.frame == nil:
			c.answered(s.req, s.units, nil)
		case failed:
			c.unfetched(s)
		}
	}
	k.transfers, k.of = k.transfers[:0], k.of[:0]
}

// unfetched fails a write whose data could not be read. Its frame must not be sent: what is in it is older data, of anybody.
func (c *Core) unfetched(s staged) {
	kept := c.out[:0]
	for _, t := range c.out {
		if t.Frame == s.frame {
			t.Frame.Release()
		} else {
			kept = append(kept, t)
		}
	}
	c.out = kept
	if e := c.table.find(s.tag); e != nil && e.frame == s.frame {
		c.abandon(e, ErrIO)
	} else if s.req.Err == nil {
		s.req.Err = ErrIO // the part is to be framed again: no more
	}
}
