package target

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// maxAdmitted is how many addresses a node may have.
const maxAdmitted = 64

// Admit lets a node use a LUN from its addresses; repeated with other addresses it replaces them. ErrAdmitted while
// another node is admitted.
func (s *Shelf) Admit(ctx context.Context, slot uint8, generation string, a Admission) (LUN, error) {
	if err := a.check(); err != nil {
		return LUN{}, fmt.Errorf("admit: %w", err)
	}
	l, err := s.find(slot, generation)
	if err != nil {
		return LUN{}, fmt.Errorf("admit %s: %w", a.Node, err)
	}
	defer l.control.Unlock()
	if err := l.admit(ctx, a); err != nil {
		return LUN{}, fmt.Errorf("admit %s to %s: %w", a.Node, l.addr(), err)
	}
	return l.info()
}

func (a *Admission) check() error {
	if a.Node == "" || len(a.Node) > maxName {
		return fmt.Errorf("%w: node name %q", ErrInvalid, a.Node)
	}
	if len(a.MACs) == 0 || len(a.MACs) > maxAdmitted {
		return fmt.Errorf("%w: %d addresses of node %s, want 1 to %d", ErrInvalid, len(a.MACs), a.Node, maxAdmitted)
	}
	for _, mac := range a.MACs {
		if mac.IsMulticast() || mac == (aoe.MAC{}) {
			return fmt.Errorf("%w: %s of node %s is no station's address", ErrInvalid, mac, a.Node)
		}
	}
	return nil
}

// admit is Admit for who holds control.
func (l *lun) admit(ctx context.Context, a Admission) error {
	macs := slices.Clone(a.MACs)
	slices.SortFunc(macs, func(x, y aoe.MAC) int { return slices.Compare(x[:], y[:]) })
	macs = slices.Compact(macs)
	for _, other := range l.rec.Load().Admitted {
		if other.Node != a.Node {
			return fmt.Errorf("%w: %s", ErrAdmitted, other.Node)
		}
		if slices.Equal(other.MACs, macs) {
			return l.drainPatiently(ctx) // a removal of addresses may have been cut off before
		}
	}
	err := l.save(func(rec *lunRecord) {
		if len(rec.Admitted) == 0 {
			// What the node may still have from an admission before is older than what others have written since.
			rec.Admission = max(1, rec.Admission+1)
		}
		rec.Admitted = []Admission{{Node: a.Node, MACs: macs}}
	})
	if err != nil {
		return err
	}
	klog.InfoS("Node admitted", "lun", l.addr(), "node", a.Node, "macs", len(macs))
	l.shelf.announce(l)
	return l.drainPatiently(ctx) // addresses that the node no longer has
}

// Expel takes a node off a LUN: when it returns nil, no frame of that node takes effect any more, and that is durable.
// A node that is not admitted is success. When ctx ends before a running job does, it is ErrBusy: the node is off, but what it
// sent before may still be taking effect; repeat it.
func (s *Shelf) Expel(ctx context.Context, slot uint8, generation, node string) (LUN, error) {
	l, err := s.find(slot, generation)
	if err != nil {
		return LUN{}, fmt.Errorf("expel %s: %w", node, err)
	}
	defer l.control.Unlock()
	if err := l.expel(ctx, node); err != nil {
		return LUN{}, fmt.Errorf("expel %s from %s: %w", node, l.addr(), err)
	}
	return l.info()
}

// expel is Expel for who holds control.
func (l *lun) expel(ctx context.Context, node string) error {
	if at := l.rec.Load().admission(node); at >= 0 {
		l.mu.Lock()
		for _, s := range l.sessions {
			if s != nil && s.node == node {
				l.end(s)
			}
		}
		used := l.usedEpochs()
		l.mu.Unlock()
		err := l.save(func(rec *lunRecord) {
			rec.Admitted = slices.Delete(rec.Admitted, at, at+1)
			rec.Initiators = slices.DeleteFunc(rec.Initiators, func(i initiatorRecord) bool { return i.Node == node })
			rec.UsedEpochs = used
		})
		if err != nil {
			return err
		}
		klog.InfoS("Node expelled", "lun", l.addr(), "node", node)
	}
	return l.drainPatiently(ctx)
}

// drainPatiently is drain, with the error that a caller of the shelf API can act on.
func (l *lun) drainPatiently(ctx context.Context) error {
	if err := l.drain(ctx); err != nil {
		return fmt.Errorf("%w: older requests still run: %w", ErrBusy, err)
	}
	return nil
}
