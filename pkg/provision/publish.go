package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Publish admits the node on the shelf. One node at a time: ErrInUse names the one that
// has the volume. ErrConflict if the node has it with another access already.
//
// That the node may be admitted is written down before the shelf is asked, so that a
// lost answer is remembered as "may be".
func (s *Service) Publish(ctx context.Context, handle, node string, readOnly bool) (*volume.Publication, error) {
	rec, unlock, err := s.locked(ctx, handle)
	if err != nil {
		return nil, fmt.Errorf("publish volume %s to node %s: %w", handle, node, err)
	}
	defer unlock()
	p, err := s.publish(ctx, rec, node, readOnly)
	if err != nil {
		return nil, fmt.Errorf("publish volume %s to node %s: %w", handle, node, err)
	}
	return p, nil
}

func (s *Service) publish(ctx context.Context, rec *volume.Record, name string, readOnly bool) (*volume.Publication, error) {
	node, err := s.node(ctx, name)
	if err != nil {
		return nil, err
	}
	choice, err := frontendFor(rec, node)
	if err != nil {
		return nil, err
	}
	adm := volume.Admission{Node: name, MACs: node.MACs(), ReadOnly: readOnly, Frontend: choice.name, FrontendReason: choice.reason}
	if err := s.change(ctx, rec, func(r *volume.Record) error { return remember(r, adm) }); err != nil {
		return nil, err
	}
	adm = *rec.Admission(name)
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		return nil, err
	}
	at, warnings, err := shelf.Admit(ctx, rec.ID, adm.Node, adm.MACs)
	if err != nil {
		if errors.Is(err, volume.ErrInUse) {
			s.withdraw(ctx, rec, name)
		}
		return nil, err
	}
	newly, err := s.confirm(ctx, rec, shelf, name)
	if err != nil {
		return nil, err
	}
	if newly {
		s.recorder.Event(rec, EventNormal, "NodeAdmitted", fmt.Sprintf("node %s may use %s (its MACs: %s)", name, rec.ID.Addr, strings.Join(adm.MACs, ", ")))
		for _, w := range warnings {
			s.recorder.Event(rec, EventWarning, w.Reason, w.Message)
		}
		if adm.Frontend != frontendAuto {
			s.recorder.Event(rec, EventNormal, "FrontendSelected", fmt.Sprintf("node %s makes the device through %s: %s", name, adm.Frontend, adm.FrontendReason))
		}
	}
	return &volume.Publication{
		Target:     rec.ID.Addr,
		Generation: rec.ID.Generation,
		Frontend:   adm.Frontend, FrontendReason: adm.FrontendReason,
		DeadTime: rec.Parameters.DeadTime,
		ReadOnly: readOnly, MACs: at,
	}, nil
}

// confirm notes that the shelf admitted the node. If the node was taken off by another
// controller meanwhile, the admission came too late and is taken back.
func (s *Service) confirm(ctx context.Context, rec *volume.Record, shelf *Shelf, node string) (newly bool, err error) {
	err = s.change(ctx, rec, func(r *volume.Record) error {
		a := r.Admission(node)
		switch {
		case a == nil:
			late := fmt.Errorf("%w: %s was taken off node %s meanwhile", volume.ErrPending, r.ID.Addr, node)
			return errors.Join(late, shelf.Expel(context.WithoutCancel(ctx), r.ID, node))
		case a.Confirmed:
			return errUnchanged
		}
		a.Confirmed, newly = true, true
		return nil
	})
	return newly && err == nil, err
}

// node returns what a node tells about itself, or an error that says what to do.
func (s *Service) node(ctx context.Context, name string) (*volume.Node, error) {
	node, err := s.store.GetNode(ctx, name)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, fmt.Errorf("%w: node %q has not told its MACs (no AoENode %s): is the aoe-csi node plugin running there?", volume.ErrNotFound, name, name)
	}
	if err != nil {
		return nil, err
	}
	if len(node.MACs()) == 0 {
		return nil, fmt.Errorf("%w: node %q has no network interface for AoE: is the initiator running there, and its --interface right?",
			volume.ErrPrecondition, name)
	}
	return node, nil
}

// remember adds the admission to the record, or says why it cannot be.
func remember(r *volume.Record, adm volume.Admission) error {
	if r.Phase == volume.PhaseDeleting {
		return fmt.Errorf("%w: volume %s is being deleted", volume.ErrNotFound, r.Name)
	}
	if r.Phase != volume.PhaseReady {
		return fmt.Errorf("%w: volume %s is not made yet", volume.ErrPending, r.Name)
	}
	for _, other := range r.Admitted {
		if other.Node != adm.Node {
			return fmt.Errorf("%w: %s is published to node %s; it can be on one node at a time", volume.ErrInUse, r.ID.Addr, other.Node)
		}
	}
	have := r.Admission(adm.Node)
	switch {
	case have == nil:
		r.Admitted = append(r.Admitted, adm)
		return nil
	case have.ReadOnly != adm.ReadOnly:
		return fmt.Errorf("%w: %s is published to node %s with readonly=%t", volume.ErrConflict, r.ID.Addr, have.Node, have.ReadOnly)
	}
	same := have.Frontend == adm.Frontend
	have.Frontend, have.FrontendReason = adm.Frontend, adm.FrontendReason
	if covers(have.MACs, adm.MACs) {
		if same {
			return errUnchanged
		}
		return nil
	}
	// None is taken away: a node that is starting tells of fewer interfaces than its devices use.
	have.MACs, have.Confirmed = union(have.MACs, adm.MACs), false
	return nil
}

// withdraw forgets an admission that the shelf refused for certain. Failing to is no
// harm: the node is then expelled, for nothing, when it is unpublished.
func (s *Service) withdraw(ctx context.Context, rec *volume.Record, node string) {
	err := s.change(context.WithoutCancel(ctx), rec, func(r *volume.Record) error { return drop(r, node) })
	if err != nil {
		s.note(ctx, rec, err)
	}
}

// Unpublish expels the node at the shelf and forgets it when the shelf has confirmed
// that nothing of that node takes effect any more; until then it fails. node "" means
// every node. A volume that is gone, or a node that is not admitted, is success.
func (s *Service) Unpublish(ctx context.Context, handle, node string) error {
	rec, unlock, err := s.locked(ctx, handle)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpublish volume %s from node %s: %w", handle, node, err)
	}
	defer unlock()
	if rec.Phase == volume.PhasePending {
		return nil
	}
	if err := s.unpublish(ctx, rec, node); err != nil {
		return fmt.Errorf("unpublish volume %s from node %s: %w", handle, node, err)
	}
	return nil
}

func (s *Service) unpublish(ctx context.Context, rec *volume.Record, node string) error {
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		return err
	}
	nodes := []string{node}
	if node == "" {
		if nodes, err = s.everyNode(ctx, rec, shelf); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := s.expel(ctx, rec, shelf, n); err != nil {
			return err
		}
	}
	return nil
}

// everyNode returns the nodes that the record or the shelf knows of.
func (s *Service) everyNode(ctx context.Context, rec *volume.Record, shelf *Shelf) ([]string, error) {
	nodes, err := shelf.AdmittedNodes(ctx, rec.ID)
	if err != nil && !errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	for _, a := range rec.Admitted {
		nodes = append(nodes, a.Node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes), nil
}

// expel takes one node off. The admission is marked unconfirmed first: if it is found
// confirmed afterwards, a Publish came in between and the node must not be forgotten.
func (s *Service) expel(ctx context.Context, rec *volume.Record, shelf *Shelf, node string) error {
	known := rec.Admission(node) != nil
	err := s.change(ctx, rec, func(r *volume.Record) error {
		a := r.Admission(node)
		if a == nil || !a.Confirmed {
			return errUnchanged
		}
		a.Confirmed = false
		return nil
	})
	if err != nil {
		return err
	}
	// Asked also when the record knows nothing: the shelf's list is what counts on the wire.
	// A LUN that is not there lets nobody write.
	if err := shelf.Expel(ctx, rec.ID, node); err != nil && !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	err = s.change(ctx, rec, func(r *volume.Record) error {
		if a := r.Admission(node); a != nil && a.Confirmed {
			return fmt.Errorf("%w: %s was published to node %s again meanwhile", volume.ErrPending, r.ID.Addr, node)
		}
		return drop(r, node)
	})
	if err == nil && known {
		s.recorder.Event(rec, EventNormal, "NodeExpelled", fmt.Sprintf("node %s can write to %s no more: shelf %d confirmed it", node, rec.ID.Addr, rec.ID.Addr.Shelf))
	}
	return err
}

// union returns the addresses of both, sorted, each once.
func union(a, b []string) []string {
	macs := slices.Concat(a, b)
	slices.Sort(macs)
	return slices.Compact(macs)
}

// covers says whether every address of want is in have.
func covers(have, want []string) bool {
	return !slices.ContainsFunc(want, func(mac string) bool { return !slices.Contains(have, mac) })
}

func drop(r *volume.Record, node string) error {
	before := len(r.Admitted)
	r.Admitted = slices.DeleteFunc(r.Admitted, func(a volume.Admission) bool { return a.Node == node })
	if len(r.Admitted) == before {
		return errUnchanged
	}
	return nil
}
