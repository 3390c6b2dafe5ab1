package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Expand makes the volume at least required and at most limit bytes large (0: no limit), and returns its size:
//
//  1. the record says the new size: from now on every retry, and Repair, means it;
//  2. the shelf makes the LUN so large, and says how large it is;
//  3. the record says that it is.
//
// A shelf's definite refusal takes the intent back. A volume is never made smaller, and one that is as large already is success.
func (s *Service) Expand(ctx context.Context, handle string, required, limit int64) (int64, error) {
	rec, unlock, err := s.locked(ctx, handle)
	if err != nil {
		return 0, fmt.Errorf("expand volume %s: %w", handle, err)
	}
	defer unlock()
	before := rec.ShelfBytes
	err = s.change(ctx, rec, func(r *volume.Record) error { return intendSize(r, required, limit) })
	if err == nil && rec.ShelfBytes < rec.SizeBytes {
		err = s.enlarge(ctx, rec)
	}
	if err != nil {
		return 0, fmt.Errorf("expand volume %s: %w", handle, err)
	}
	if rec.ShelfBytes > before {
		s.recorder.Event(rec, EventNormal, "VolumeExpanded", fmt.Sprintf("volume %s, %s on shelf %d, has grown from %s to %s",
			rec.Name, rec.ID.Addr, rec.ID.Addr.Shelf, humanSize(before), humanSize(rec.ShelfBytes)))
	}
	return rec.ShelfBytes, nil
}

// intendSize writes down the size that the volume is to have. The newest wish counts: a larger one that the shelf has not confirmed
// is forgotten, so that a claim that asked for too much can ask for less.
func intendSize(r *volume.Record, required, limit int64) error {
	switch r.Phase {
	case volume.PhaseReady:
	case volume.PhaseDeleting:
		return fmt.Errorf("%w: volume %s is being deleted", volume.ErrNotFound, r.Name)
	default:
		return fmt.Errorf("%w: volume %s is not made yet", volume.ErrPending, r.Name)
	}
	size, err := volume.ExpandSize(r.Volume().SizeBytes, required, limit)
	if err != nil {
		return err
	}
	if r.SizeBytes == size {
		return errUnchanged
	}
	r.SizeBytes = size
	return nil
}

// enlarge has the shelf do what the record says, and notes what became of it.
func (s *Service) enlarge(ctx context.Context, rec *volume.Record) error {
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		s.note(ctx, rec, err)
		return err
	}
	asked := rec.SizeBytes
	size, err := shelf.GrowLun(ctx, rec.ID, asked)
	switch {
	case err == nil:
		return s.change(ctx, rec, func(r *volume.Record) error {
			r.ShelfBytes, r.Message = max(r.ShelfBytes, size), ""
			r.SizeBytes = max(r.SizeBytes, r.ShelfBytes)
			return nil
		})
	case refused(err):
		// As a growth whose answer was lost would not be refused when repeated, the LUN is as the record last saw it.
		cause := s.change(context.WithoutCancel(ctx), rec, func(r *volume.Record) error {
			if r.SizeBytes != asked || r.ShelfBytes == 0 || r.ShelfBytes >= asked {
				return errUnchanged // somebody else decided meanwhile
			}
			r.SizeBytes = r.ShelfBytes
			return nil
		})
		return errors.Join(err, cause)
	}
	s.note(ctx, rec, err)
	return err
}
