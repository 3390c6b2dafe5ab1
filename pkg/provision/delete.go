package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Delete removes the volume and its data. A handle that means no volume is success.
// ErrInUse while a node is, or may be, admitted.
func (s *Service) Delete(ctx context.Context, handle string) error {
	rec, unlock, err := s.locked(ctx, handle)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", handle, err)
	}
	defer unlock()
	if err := s.remove(ctx, rec); err != nil {
		if rec.Phase == volume.PhaseDeleting {
			s.note(ctx, rec, err)
		}
		return fmt.Errorf("delete volume %s: %w", handle, err)
	}
	s.recorder.Event(rec, EventNormal, "VolumeDeleted",
		fmt.Sprintf("volume %s, %s on shelf %d, is deleted; its data is gone", rec.Name, rec.ID.Addr, rec.ID.Addr.Shelf))
	return nil
}

// remove takes back an intent in the opposite order of Create, so that whatever is left
// after a cut-off still says what has to go: first the data, then the slot, the record
// last.
func (s *Service) remove(ctx context.Context, rec *volume.Record) error {
	if rec.Phase == volume.PhasePending {
		// The shelf was never asked. Whoever is about to ask has to get past this version of the record first.
		err := s.store.DeleteVolume(ctx, rec)
		if err == nil {
			return s.store.ReleaseSlot(ctx, slotOf(rec))
		}
		if !errors.Is(err, volume.ErrStale) {
			return err
		}
		if err := s.reread(ctx, rec); err != nil {
			return err
		}
	}
	err := s.change(ctx, rec, func(r *volume.Record) error {
		switch {
		case len(r.Admitted) > 0:
			return fmt.Errorf("%w: %s is published to %s; unpublish it first", volume.ErrInUse, r.ID.Addr, admittedNodes(r))
		case r.Phase == volume.PhaseDeleting:
			return errUnchanged
		}
		r.Phase, r.Message = volume.PhaseDeleting, ""
		return nil
	})
	if err != nil {
		return err
	}
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		return err
	}
	if err := shelf.DeleteLun(ctx, rec.ID); err != nil {
		return err
	}
	if err := s.store.ReleaseSlot(ctx, slotOf(rec)); err != nil {
		return err
	}
	return s.forget(ctx, rec)
}

// forget removes a record whose data and slot are gone, also when a message was written
// to it meanwhile: nothing leads back from Deleting.
func (s *Service) forget(ctx context.Context, rec *volume.Record) error {
	for range staleRetries {
		err := s.store.DeleteVolume(ctx, rec)
		if !errors.Is(err, volume.ErrStale) {
			return err
		}
		fresh, err := s.store.GetVolume(ctx, rec.Name)
		switch {
		case errors.Is(err, volume.ErrNotFound):
			return nil
		case err != nil:
			return err
		case fresh.ID != rec.ID:
			return nil
		}
		*rec = *fresh
	}
	return fmt.Errorf("%w: volume %s is changed by others all the time", volume.ErrPending, rec.Name)
}

func admittedNodes(rec *volume.Record) string {
	names := make([]string, 0, len(rec.Admitted))
	for _, a := range rec.Admitted {
		names = append(names, "node "+a.Node)
	}
	return strings.Join(names, ", ")
}
