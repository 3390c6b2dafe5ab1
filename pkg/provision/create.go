package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Create makes the volume, or finds the one that an earlier call with this name made or
// began:
//
//  1. the record is written with shelf, slot and generation: from now on every retry
//     means this LUN;
//  2. the slot is owned by creating its object;
//  3. the record says Creating, which only the writer that saw it Pending can do: from
//     now on the shelf may have been asked;
//  4. the shelf makes the LUN;
//  5. the record says Ready.
//
// Only a shelf's definite refusal, with the absence of the LUN confirmed, ends an intent
// and lets the next shelf be asked.
func (s *Service) Create(ctx context.Context, req volume.CreateRequest) (*volume.Volume, error) {
	size, err := req.Size()
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", req.Name, err)
	}
	unlock, err := s.busy.lock(req.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ex := newExclusions(&s.slots)
	defer ex.close()
	for {
		rec, err := s.intent(ctx, req, size, ex)
		if err != nil {
			return nil, fmt.Errorf("create volume %s: %w", req.Name, err)
		}
		if rec.Phase == volume.PhaseReady {
			return rec.Volume(), nil
		}
		err = s.realize(ctx, rec)
		switch {
		case err == nil:
			s.recorder.Event(rec, EventNormal, "VolumeProvisioned", fmt.Sprintf("volume %s is %s on shelf %d, %s; identity %s",
				rec.Name, rec.ID.Addr, rec.ID.Addr.Shelf, humanSize(rec.SizeBytes), rec.ID.Generation))
			return rec.Volume(), nil
		case !refused(err):
			s.note(ctx, rec, err)
			return nil, fmt.Errorf("create volume %s as %s: %w", req.Name, rec.ID.Addr, err)
		}
		if cause := s.remove(ctx, rec); cause != nil {
			return nil, fmt.Errorf("create volume %s: shelf %d refused (%w), and the intent cannot be taken back yet: %w",
				req.Name, rec.ID.Addr.Shelf, err, cause)
		}
		ex.add(rec.ID.Addr, err)
	}
}

// refused says whether the shelf decided that it does not make the LUN.
func refused(err error) bool {
	for _, sentinel := range []error{volume.ErrNoSpace, volume.ErrOutOfRange, volume.ErrConflict, volume.ErrInvalid} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// intent returns the record that this request means, with its slot owned.
func (s *Service) intent(ctx context.Context, req volume.CreateRequest, size int64, ex *exclusions) (*volume.Record, error) {
	for {
		rec, err := s.store.GetVolume(ctx, req.Name)
		switch {
		case errors.Is(err, volume.ErrNotFound):
			rec, err = s.writeIntent(ctx, req, size, ex)
			if errors.Is(err, volume.ErrExists) {
				continue // another controller was first: its intent counts
			}
			if err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		case rec.Phase == volume.PhaseDeleting:
			// A deletion, or the end of a refused intent, was cut off. The name is free when it is through.
			if err := s.remove(ctx, rec); err != nil {
				return nil, err
			}
			continue
		default:
			if err := compatible(rec, req); err != nil {
				return nil, err
			}
		}
		if rec.Phase != volume.PhasePending {
			return rec, nil
		}
		err = s.ownSlot(ctx, rec)
		if !errors.Is(err, volume.ErrExists) {
			return rec, err
		}
		// Another volume was faster. The shelf was not asked, so the intent can go.
		ex.slots[rec.ID.Addr] = true
		if err := s.store.DeleteVolume(ctx, rec); err != nil && !errors.Is(err, volume.ErrStale) {
			return nil, err
		}
	}
}

// writeIntent chooses and writes a new record; ErrExists if the name has one by now.
func (s *Service) writeIntent(ctx context.Context, req volume.CreateRequest, size int64, ex *exclusions) (*volume.Record, error) {
	shelf, pool, err := s.choose(ctx, req.Parameters, req.Segments, size, ex)
	if err != nil {
		return nil, err
	}
	var addr aoe.Addr
	if shelf != nil {
		addr, err = s.chooseSlot(ctx, shelf, ex)
	} else {
		shelf, addr, size, err = s.chooseOffer(ctx, pool, size, req.LimitBytes, ex)
	}
	if err != nil {
		return nil, err
	}
	rec := &volume.Record{
		Name:       req.Name,
		ID:         volume.ID{Addr: addr, Generation: volume.NewGeneration()},
		SizeBytes:  size,
		Parameters: req.Parameters,
		Segment:    shelf.Info.Segment,
		ShelfUUID:  shelf.Info.UUID,
		Claim:      req.Claim,
		Phase:      volume.PhasePending,
	}
	return rec, s.store.CreateVolume(ctx, rec)
}

// ownSlot makes the volume the owner of its slot and says so in the record; ErrExists if
// another volume owns it.
func (s *Service) ownSlot(ctx context.Context, rec *volume.Record) error {
	if err := s.store.ClaimSlot(ctx, slotOf(rec)); err != nil {
		return err
	}
	return s.change(ctx, rec, func(r *volume.Record) error {
		switch r.Phase {
		case volume.PhasePending:
			r.Phase = volume.PhaseCreating
			return nil
		case volume.PhaseDeleting:
			return fmt.Errorf("%w: volume %s is being removed", volume.ErrPending, r.Name)
		}
		return errUnchanged
	})
}

// realize asks the shelf and notes that it is done.
func (s *Service) realize(ctx context.Context, rec *volume.Record) error {
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		return err
	}
	if err := shelf.CreateLun(ctx, rec.ID, rec.Name, rec.SizeBytes); err != nil {
		return err
	}
	return s.change(ctx, rec, func(r *volume.Record) error {
		switch r.Phase {
		case volume.PhaseReady:
			return errUnchanged
		case volume.PhaseDeleting:
			return fmt.Errorf("%w: volume %s is being removed", volume.ErrPending, r.Name)
		}
		r.Phase, r.Message, r.ShelfBytes = volume.PhaseReady, "", r.SizeBytes
		return nil
	})
}

// compatible says whether a volume that exists is what is asked for.
func compatible(rec *volume.Record, req volume.CreateRequest) error {
	differ := func(what string, have, want any) error {
		return fmt.Errorf("%w: volume %s has %s %v, asked for is %v", volume.ErrConflict, rec.Name, what, have, want)
	}
	switch {
	case rec.SizeBytes < req.RequiredBytes:
		return differ("size", rec.SizeBytes, fmt.Sprintf("at least %d", req.RequiredBytes))
	case req.LimitBytes > 0 && rec.SizeBytes > req.LimitBytes:
		return differ("size", rec.SizeBytes, fmt.Sprintf("at most %d", req.LimitBytes))
	case !rec.Parameters.Equal(req.Parameters):
		return differ("parameters", describe(rec.Parameters), describe(req.Parameters))
	case len(req.Segments) > 0 && !slices.Contains(req.Segments, rec.Segment):
		return differ("segment", rec.Segment, req.Segments)
	}
	return nil
}

// describe writes parameters for people.
func describe(p volume.Parameters) string {
	shelf := "any"
	if p.Shelf != nil {
		shelf = fmt.Sprint(*p.Shelf)
	}
	return fmt.Sprintf("{shelf %s, shelfSelector %q, fstype %q, mkfsOptions %q, frontend %q, deadTime %s}", shelf, p.ShelfSelector, p.FSType, p.MkfsOptions, p.Frontend, p.DeadTime)
}

func slotOf(rec *volume.Record) volume.Slot {
	return volume.Slot{Addr: rec.ID.Addr, VolumeName: rec.Name, Generation: rec.ID.Generation}
}
