package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// AdoptRequest names a LUN with data on it that becomes a volume.
type AdoptRequest struct {
	Name       string // of the volume
	Addr       aoe.Addr
	Parameters volume.Parameters
	Claim      string // whose it will be, "namespace/name"; may be empty
}

// Adopt makes a LUN of a fixed shelf a volume as it is: nothing on it is read or written. The same again is success. ErrConflict if the
// LUN or the name is somebody else's.
func (s *Service) Adopt(ctx context.Context, req AdoptRequest) (*volume.Volume, error) {
	unlock, err := s.busy.lock(req.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := s.adopted(ctx, req)
	if err == nil {
		err = s.confirmAdoption(ctx, rec)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt %s as volume %s: %w", req.Addr, req.Name, err)
	}
	return rec.Volume(), nil
}

// adopted writes the intent, or finds the one of an earlier call. It says from the start that the volume has been made: so nobody ever
// takes what is on the LUN for something to be wiped.
func (s *Service) adopted(ctx context.Context, req AdoptRequest) (*volume.Record, error) {
	rec, err := s.store.GetVolume(ctx, req.Name)
	switch {
	case err == nil && rec.ID.Addr != req.Addr:
		return nil, fmt.Errorf("%w: the name is that of %s", volume.ErrConflict, rec.ID.Addr)
	case err == nil && rec.Phase != volume.PhasePending && rec.Phase != volume.PhaseReady:
		return nil, fmt.Errorf("%w: it is %s", volume.ErrConflict, rec.Phase)
	case err != nil && !errors.Is(err, volume.ErrNotFound):
		return nil, err
	case err != nil:
		if rec, err = s.intendAdoption(ctx, req); err != nil {
			return nil, err
		}
	}
	err = s.store.ClaimSlot(ctx, slotOf(rec))
	if errors.Is(err, volume.ErrExists) {
		return nil, errors.Join(fmt.Errorf("%w: it belongs to another volume", volume.ErrConflict), s.abandon(ctx, rec))
	}
	return rec, err
}

// intendAdoption looks at the LUN's size and writes a new record.
func (s *Service) intendAdoption(ctx context.Context, req AdoptRequest) (*volume.Record, error) {
	shelf, err := s.shelves.Get(ctx, req.Addr.Shelf, "")
	if err != nil {
		return nil, err
	}
	room, err := shelf.capacity(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(room.Offers, func(o Offer) bool { return o.Slot == req.Addr.Slot })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w: it is not in a pool of LUNs that are there already", volume.ErrNotFound)
	case room.Offers[i].Refused != "" && !room.Offers[i].Data:
		return nil, fmt.Errorf("%w: it %s", volume.ErrConflict, room.Offers[i].Refused)
	}
	rec := &volume.Record{
		Name: req.Name, ID: volume.ID{Addr: req.Addr, Generation: volume.NewGeneration()},
		SizeBytes: room.Offers[i].Bytes, Parameters: req.Parameters, Segment: shelf.Info.Segment, ShelfUUID: shelf.Info.UUID,
		Claim: req.Claim, Phase: volume.PhasePending,
	}
	return rec, s.store.CreateVolume(ctx, rec)
}

// confirmAdoption says that the volume is made, and has the shelf claim it on the wire, which takes a volume that is made as it is.
func (s *Service) confirmAdoption(ctx context.Context, rec *volume.Record) error {
	err := s.change(ctx, rec, func(r *volume.Record) error {
		if r.Phase == volume.PhaseReady {
			return errUnchanged
		}
		r.Phase, r.Message, r.ShelfBytes = volume.PhaseReady, "", r.SizeBytes
		return nil
	})
	if err != nil {
		return err
	}
	shelf, err := s.shelves.Get(ctx, rec.ID.Addr.Shelf, rec.ShelfUUID)
	if err != nil {
		return err
	}
	return shelf.CreateLun(ctx, rec.ID, rec.Name, rec.SizeBytes)
}

// abandon takes an intent back whose slot was never owned.
func (s *Service) abandon(ctx context.Context, rec *volume.Record) error {
	if rec.Phase != volume.PhasePending {
		return nil
	}
	return s.store.DeleteVolume(ctx, rec)
}
