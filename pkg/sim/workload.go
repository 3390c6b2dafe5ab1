package sim

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// use has threads work on a device until it is detached; it returns when all have ended.
func (s *Sim) use(d *device) {
	for range s.plan.threads {
		s.begin(func() { s.thread(d) })
	}
}

// thread submits one request after the other.
func (s *Sim) thread(d *device) {
	over := func() bool { return s.ended || d.gone }
	s.tasks.Await(func() bool { return d.wasReady || over() })
	for !over() && s.err == nil {
		s.tasks.sleep(time.Duration(s.dice.Int64N(int64(s.plan.think))), over)
		if over() {
			return
		}
		r := s.pick(d)
		if r == nil {
			continue
		}
		s.tracef("%s: %s", d.node.name, r.op)
		d.submit(r)
		s.tasks.Await(func() bool { return r.done })
		if r.err != nil {
			s.tasks.sleep(100*time.Millisecond, over) // who gets errors does not hurry
		}
	}
}

// pick makes a request that no pending write overlaps; nil if chance finds none.
func (s *Sim) pick(d *device) *request {
	v := d.volume
	n := 1 + s.dice.IntN(12)
	lba := s.dice.IntN(v.sectors - n + 1)
	kind := initiator.OpWrite
	switch k := s.dice.IntN(20); {
	case k == 0:
		kind = initiator.OpTrim
	case k < 3:
		kind, lba, n = initiator.OpFlush, 0, 0
	case k < 11:
		kind = initiator.OpRead
	}
	if kind != initiator.OpFlush && !s.free(d, kind, lba, n) {
		return nil
	}
	o := s.model.begin(kind, d, lba, n)
	r := &request{op: o, Request: initiator.Request{Op: kind, LBA: uint64(lba), Sectors: uint32(n)}}
	switch kind {
	case initiator.OpWrite:
		r.Data = make([]byte, n*sectorSize)
		o.fill(r.Data)
		o.fua = !v.open && s.dice.IntN(8) == 0
		r.FUA = o.fua
	case initiator.OpRead:
		r.Data = make([]byte, n*sectorSize)
	}
	return r
}

// free says whether a request may be submitted: nobody orders writes that overlap and are pending at once.
func (s *Sim) free(d *device, kind initiator.Op, lba, n int) bool {
	for _, p := range d.pending {
		o := p.op
		if o.kind == initiator.OpFlush || lba >= o.lba+o.n || o.lba >= lba+n {
			continue
		}
		if kind != initiator.OpRead && o.kind != initiator.OpRead || kind != o.kind && !s.plan.overlap {
			return false
		}
	}
	return true
}
