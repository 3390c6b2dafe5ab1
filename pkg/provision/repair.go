package provision

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Repair puts right what a cut-off or a deletion by hand left: slots without a volume,
// volumes without their slot, deletions and growths that nobody repeats; and it notices network
// interfaces that a node got after it was admitted. It returns what it could not
// put right now.
func (s *Service) Repair(ctx context.Context) error {
	// Slots first: a record is written before its slot is claimed, so a slot whose record is not there now has none.
	slots, err := s.store.ListSlots(ctx)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	records, err := s.store.ListVolumes(ctx)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	owners := make(map[volume.Slot]bool, len(records))
	for i := range records {
		owners[slotOf(&records[i])] = true
	}
	var failed []error
	for _, slot := range slots {
		if owners[slot] {
			continue
		}
		klog.FromContext(ctx).Info("Slot released that no volume owns", "slot", slot.Addr.String(), "volume", slot.VolumeName)
		failed = append(failed, s.store.ReleaseSlot(ctx, slot))
	}
	for i := range records {
		failed = append(failed, s.repairVolume(ctx, &records[i]))
	}
	return errors.Join(failed...)
}

func (s *Service) repairVolume(ctx context.Context, rec *volume.Record) error {
	unlock, err := s.busy.lock(rec.Name)
	if err != nil {
		return nil // somebody is at it
	}
	defer unlock()
	if err := s.reread(ctx, rec); err != nil {
		if errors.Is(err, volume.ErrPending) {
			return nil // gone since the list was made
		}
		return fmt.Errorf("repair volume %s: %w", rec.Name, err)
	}
	switch rec.Phase {
	case volume.PhaseDeleting:
		err = s.remove(ctx, rec)
	case volume.PhaseReady:
		if err = s.store.ClaimSlot(ctx, slotOf(rec)); errors.Is(err, volume.ErrExists) {
			err = nil // the handle is still found by its generation, and the shelf keeps the two apart
		}
		if err == nil {
			err = s.noticeNewInterfaces(ctx, rec)
		}
		if err == nil && rec.ShelfBytes < rec.SizeBytes {
			err = s.enlarge(ctx, rec)
		}
	}
	if err != nil {
		return fmt.Errorf("repair volume %s: %w", rec.Name, err)
	}
	return nil
}

// noticeNewInterfaces marks an admission as not confirmed when the node has addresses that
// the shelf does not know. The node is then missing among the published ones that
// ListVolumes tells, and csi-attacher publishes again. It is not done here, because an
// unpublishing that another controller is at must not be overtaken.
func (s *Service) noticeNewInterfaces(ctx context.Context, rec *volume.Record) error {
	for _, seen := range rec.Admitted {
		node, err := s.store.GetNode(ctx, seen.Node)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		err = s.change(ctx, rec, func(r *volume.Record) error {
			a := r.Admission(seen.Node)
			if a == nil || !a.Confirmed || covers(a.MACs, node.MACs()) {
				return errUnchanged
			}
			a.Confirmed = false
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// RunRepair repairs at intervals until ctx ends.
func (s *Service) RunRepair(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := s.Repair(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Not everything could be repaired")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
