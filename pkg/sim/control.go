package sim

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// control is the control plane's work on one slot: volumes come, move from node to node, and go.
func (s *Sim) control(slot uint8) {
	for !s.over() {
		v := s.create(slot)
		var d *device
		for range 1 + s.dice.IntN(3) {
			if d = s.publish(v); d == nil {
				break
			}
			s.tasks.sleep(time.Duration(s.dice.Int64N(int64(s.plan.duration))), s.over)
			if s.ended {
				s.finish(d)
				break
			}
			if !s.unpublish(d) {
				break
			}
		}
		s.remove(v)
		if v.open {
			s.tasks.sleep(fenceless, s.failed)
		}
	}
}

// over says whether nothing new is to be begun.
func (s *Sim) over() bool { return s.ended || s.err != nil }

// failed says whether the run is over for having failed.
func (s *Sim) failed() bool { return s.err != nil }

const base32 = "abcdefghijklmnopqrstuvwxyz234567"

// create makes a volume.
func (s *Sim) create(slot uint8) *volume {
	s.volumes++
	v := &volume{slot: slot, index: s.volumes, open: s.plan.openVolumes, sectors: sectorsPerVolume, mayWrite: map[*node]bool{}}
	var g [16]byte
	for i := range g {
		g[i] = base32[s.dice.IntN(len(base32))]
	}
	v.generation = string(g[:])
	for range v.sectors {
		v.history = append(v.history, []*cluster{{}})
	}
	access := target.ManagedAccess
	if v.open {
		access = target.OpenAccess
	}
	s.call("create "+v.String(), func(ctx context.Context, shelf *target.Shelf) error {
		lun, err := shelf.Create(ctx, target.CreateRequest{
			Slot: slot, Generation: v.generation, SizeBytes: int64(v.sectors * sectorSize), Access: access,
		})
		if err == nil {
			v.uuid = lun.UUID
			s.model.volumes[v.uuid] = v
		}
		return err
	})
	return v
}

// publish admits a volume on a node and attaches it there; nil if the run is over before.
func (s *Sim) publish(v *volume) *device {
	n := s.someNode()
	if v.open {
		// Nobody can tell such a target's attachments apart, so nobody makes a second one before the first is gone.
		s.tasks.Await(func() bool { return s.over() || !n.uses(v) })
		if n.uses(v) {
			return nil
		}
	} else {
		s.admit(v, n) // also when what it had before is still there, and did not notice that it was taken off
	}
	s.tasks.Await(func() bool { return s.over() || !n.has(v.slot) })
	if n.has(v.slot) {
		s.expel(v, n)
		return nil
	}
	d := n.attach(v)
	s.use(d)
	return d
}

// uses says whether a volume is attached, or still being detached.
func (n *node) uses(v *volume) bool {
	return slices.ContainsFunc(n.devices, func(d *device) bool { return d.volume == v })
}

// has says whether a device of a slot is attached, or still being detached.
func (n *node) has(slot uint8) bool {
	return slices.ContainsFunc(n.devices, func(d *device) bool { return d.addr.Slot == slot })
}

// admit admits a node, sometimes with one of its addresses after the other.
func (s *Sim) admit(v *volume, n *node) {
	v.mayWrite[n] = true
	macs := n.macs()
	if s.dice.IntN(3) == 0 {
		s.admitFrom(v, n, 1)
	}
	s.admitFrom(v, n, len(macs))
}

func (s *Sim) admitFrom(v *volume, n *node, count int) {
	s.call("admit "+n.name+" to "+v.String(), func(ctx context.Context, shelf *target.Shelf) error {
		_, err := shelf.Admit(ctx, v.slot, v.generation, target.Admission{Node: n.name, MACs: n.macs()[:count]})
		return err
	})
}

func (s *Sim) expel(v *volume, n *node) {
	if v.open {
		return
	}
	for _, d := range n.devices {
		d.fenced = d.fenced || d.volume == v
	}
	s.call("expel "+n.name+" from "+v.String(), func(ctx context.Context, shelf *target.Shelf) error {
		_, err := shelf.Expel(ctx, v.slot, v.generation, n.name)
		return err
	})
	v.mayWrite[n] = false
	for _, d := range n.devices {
		d.expelled = d.expelled || d.volume == v && d.wasReady // one that never was has nothing from before
	}
}

// unpublish takes a volume off a node: in good order, or with the node going on as if nothing had happened until somebody detaches there.
// False: the volume cannot be published again.
func (s *Sim) unpublish(d *device) bool {
	v := d.volume
	if s.dice.IntN(2) == 0 {
		s.detach(d, s.dice.IntN(4) == 0)
		s.expel(v, d.node)
		return true
	}
	late := time.Duration(s.dice.Int64N(int64(8 * time.Second)))
	s.expel(v, d.node)
	if v.open {
		late += fenceless // it is deleted, and another one comes to its slot, while the device is still there
	}
	s.begin(func() {
		s.tasks.sleep(late, s.over)
		s.detach(d, true)
	})
	return !v.open
}

// fenceless is how long a slot of open access rests: frames name no volume, but after so long a silence an initiator asks who is there.
const fenceless = 7 * time.Second

// detach waits for an initiator to detach with.
func (s *Sim) detach(d *device, force bool) {
	d.detach(s.tasks, force)
}

// finish reads everything once more, flushes and lets go.
func (s *Sim) finish(d *device) {
	s.tasks.Await(func() bool { return d.wasReady && len(d.pending) == 0 || s.err != nil })
	for lba := 0; lba < d.volume.sectors && s.err == nil; lba += 16 {
		r := &request{op: s.model.begin(initiator.OpRead, d, lba, 16)}
		r.Request = initiator.Request{Op: initiator.OpRead, LBA: uint64(lba), Sectors: 16, Data: make([]byte, 16*sectorSize)}
		d.submit(r)
		s.tasks.Await(func() bool { return r.done })
	}
	r := &request{op: s.model.begin(initiator.OpFlush, d, 0, 0), Request: initiator.Request{Op: initiator.OpFlush}}
	d.submit(r)
	s.tasks.Await(func() bool { return r.done })
	s.detach(d, false)
	s.expel(d.volume, d.node)
}

// remove deletes a volume that is published nowhere.
func (s *Sim) remove(v *volume) {
	s.call("delete "+v.String(), func(ctx context.Context, shelf *target.Shelf) error {
		return shelf.Delete(ctx, v.slot, v.generation)
	})
	if s.model.file(v) != nil {
		s.fail("delete: the bytes of %s are still there", v)
	}
}

// call has the target do something, again and again until it says that it is done; sometimes the answer gets lost.
func (s *Sim) call(what string, f func(ctx context.Context, shelf *target.Shelf) error) {
	for s.err == nil {
		l := s.storage.life
		if l == nil || l.shelf == nil || l.stopped {
			s.tasks.sleep(50*time.Millisecond, s.failed)
			continue
		}
		var err error
		done := false
		ctx, _ := l.turns.Timeout(time.Duration(s.dice.Int64N(int64(2 * time.Second))))
		s.tracef("control: %s", what)
		l.turns.Go(func() {
			err = f(ctx, l.shelf)
			done = true
		})
		s.tasks.Await(func() bool { return done || l.dead })
		s.tracef("control: %s: done %v, %v", what, done, err)
		switch {
		case l.dead || s.dice.IntN(10) == 0: // whatever it says, nobody hears it
		case err == nil:
			return
		case errors.Is(err, target.ErrBusy), errors.Is(err, target.ErrClosed), errors.Is(err, errDisk):
		case errors.Is(err, context.DeadlineExceeded):
		default:
			s.fail("control: %s: %v", what, err)
		}
		s.tasks.sleep(time.Duration(s.dice.IntN(100))*time.Millisecond, s.failed)
	}
}
