package shelf

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// CreateLun implements the API: the intent's volume takes the LUN that is there. The claim is set on the wire only if nobody else has
// one there; then what is on the LUN is looked at, while only the proxy can write.
func (p *Proxy) CreateLun(ctx context.Context, r *shelfv1.CreateLunRequest) (*shelfv1.Lun, error) {
	s, generation, end, err := p.begin(r.GetId())
	if err != nil {
		return nil, err
	}
	defer end()
	rec, err := p.owned(ctx, s, generation)
	if err != nil {
		return nil, err
	}
	a, err := s.answer()
	if err != nil {
		return nil, err
	}
	if size, err := bytesOf(r.GetSizeBytes()); err != nil || size > sizeOf(a) {
		return nil, status.Errorf(codes.OutOfRange, "%s has %d bytes, asked for are %d", s.addr, sizeOf(a), r.GetSizeBytes())
	}
	if rec.Phase == volume.PhaseDeleting {
		return nil, status.Errorf(codes.Aborted, "volume %s is being removed", rec.Name)
	}
	if rec.ShelfBytes > 0 { // it was made before: what is on it is the volume's
		return p.lun(s, a, rec), p.restore(ctx, s, a, rec)
	}
	if err := p.alone(ctx, a); err != nil {
		return nil, err
	}
	if err := p.claim(ctx, s, a, rec); err != nil {
		return nil, err
	}
	if id, err := p.cfg.Client.Identify(ctx, a.Path); err != nil || id.Sectors() != a.Sectors || id.Serial() != a.Serial {
		return nil, status.Errorf(codes.Unavailable, "%s is not the disk that it was a moment ago (%v)", s.addr, err)
	}
	if err := p.prepare(ctx, s, a, rec); err != nil {
		return nil, err
	}
	if a.Reserve == inband.Yes {
		if err := p.cfg.Client.ForceReserve(ctx, a.Path, []aoe.MAC{Sentinel}); err != nil {
			return nil, wireStatus(s, err)
		}
	}
	return p.lun(s, a, rec), nil
}

// claim makes the LUN the volume's on the wire, with nobody but the proxy let in; ALREADY_EXISTS if it is somebody else's.
func (p *Proxy) claim(ctx context.Context, s *slot, a inband.Answer, rec *volume.Record) error {
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err != nil {
		return wireStatus(s, err)
	}
	mine := isClaim(now.ConfigString, string(rec.ID.Generation))
	if !mine {
		if now.ConfigString != "" {
			return s.refuse("has the config string %q", now.ConfigString)
		}
		if a.Reserve == inband.Yes {
			list, err := p.cfg.Client.Reservation(ctx, a.Path)
			if err != nil {
				return wireStatus(s, err)
			}
			if !reservable(list) {
				return s.refuse("is reserved to %s", list)
			}
		}
		if _, err := p.cfg.Client.SetConfig(ctx, a.Path, claimOf(rec).String()); errors.Is(err, inband.ErrConfigSet) {
			return s.refuse("was claimed by somebody else just now")
		} else if err != nil {
			return wireStatus(s, err)
		}
	}
	if a.Reserve != inband.Yes {
		return nil
	}
	return wireStatus(s, p.cfg.Client.ForceReserve(ctx, a.Path, p.cfg.Client.MACs()))
}

// prepare sees to it that nothing of others is on the LUN. A LUN that is refused is given back as it was.
func (p *Proxy) prepare(ctx context.Context, s *slot, a inband.Answer, rec *volume.Record) error {
	if p.cfg.Wipe {
		if s.wipedFor(rec) {
			return nil
		}
		if err := p.overwrite(s, a, claimOf(rec), "wiping"); err != nil {
			return err
		}
		if err := p.awaitQuiet(ctx, s, a); err != nil {
			return err
		}
		if err := p.cfg.Client.ForceConfig(ctx, a.Path, claimOf(rec).String()); err != nil {
			return wireStatus(s, err)
		}
		s.mu.Lock()
		s.wiped = string(rec.ID.Generation)
		s.mu.Unlock()
		return nil
	}
	found, err := p.lookForData(ctx, a)
	if err != nil {
		return wireStatus(s, err)
	}
	if found == "" {
		return nil
	}
	if err := p.release(ctx, a, nil); err != nil {
		return wireStatus(s, err)
	}
	s.mu.Lock()
	s.refusal = "is not blank: " + found // for the next choice
	s.mu.Unlock()
	return s.refuse("is not blank: %s", found)
}

func (s *slot) wipedFor(rec *volume.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wiped == string(rec.ID.Generation)
}

// release gives a LUN back: the reservation first, since the config string says that there is something to do.
func (p *Proxy) release(ctx context.Context, a inband.Answer, reserved []aoe.MAC) error {
	if a.Reserve == inband.Yes {
		if err := p.cfg.Client.ForceReserve(ctx, a.Path, reserved); err != nil {
			return err
		}
	}
	return p.cfg.Client.ForceConfig(ctx, a.Path, "")
}

// DeleteLun implements the API: the data are overwritten, then the claim is taken away. A volume that nobody was ever admitted to has
// left nothing on the LUN; what is there is then not ours to overwrite.
func (p *Proxy) DeleteLun(ctx context.Context, r *shelfv1.DeleteLunRequest) (*shelfv1.DeleteLunResponse, error) {
	s, generation, end, err := p.begin(r.GetId())
	if status.Code(err) == codes.NotFound {
		return &shelfv1.DeleteLunResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer end()
	rec, err := p.owned(ctx, s, generation)
	if status.Code(err) == codes.NotFound {
		return &shelfv1.DeleteLunResponse{}, nil // without an intent the proxy touches nothing
	}
	if err != nil {
		return nil, err
	}
	if len(rec.Admitted) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is published to %s", s.addr, rec.Admitted[0].Node)
	}
	if rec.Phase != volume.PhaseDeleting {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not to be deleted", rec.Name)
	}
	if s.clearedOf(generation) {
		return &shelfv1.DeleteLunResponse{}, nil
	}
	if err := p.remove(ctx, s, rec); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.cleared = generation
	if rec.ShelfBytes > 0 {
		s.refusal = "" // it was overwritten
	}
	s.mu.Unlock()
	return &shelfv1.DeleteLunResponse{}, nil
}

func (s *slot) clearedOf(generation string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cleared == generation
}

func (p *Proxy) remove(ctx context.Context, s *slot, rec *volume.Record) error {
	a, err := s.answer()
	if err != nil {
		return err
	}
	used := rec.ShelfBytes > 0
	if !used {
		p.endJob(s) // wiping
		s.mu.Lock()
		s.wiped = ""
		s.mu.Unlock()
		if err := p.awaitQuiet(ctx, s, a); err != nil {
			return err
		}
	}
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err != nil {
		return wireStatus(s, err)
	}
	switch mine := isClaim(now.ConfigString, string(rec.ID.Generation)); {
	case !mine && !used:
		return nil
	case mine && !used:
		return wireStatus(s, p.release(ctx, a, nil))
	case !mine && now.ConfigString != "":
		return status.Errorf(codes.FailedPrecondition, "%s has the config string %q instead of the volume's: its data are not overwritten", s.addr, now.ConfigString)
	case !mine: // forgotten
		if _, err := p.cfg.Client.SetConfig(ctx, a.Path, claimOf(rec).String()); err != nil {
			return wireStatus(s, err)
		}
	}
	if a.Reserve == inband.Yes {
		if err := p.cfg.Client.ForceReserve(ctx, a.Path, p.cfg.Client.MACs()); err != nil {
			return wireStatus(s, err)
		}
	}
	if err := p.overwrite(s, a, claimOf(rec), "scrubbing"); err != nil {
		return err
	}
	if err := p.awaitQuiet(ctx, s, a); err != nil {
		return err
	}
	// A node that was taken off and does not know it must not write to a LUN that is free.
	return wireStatus(s, p.release(ctx, a, []aoe.MAC{Sentinel}))
}

// refuse is the ALREADY_EXISTS that ends this choice.
func (s *slot) refuse(format string, args ...any) error {
	return status.Error(codes.AlreadyExists, s.addr.String()+" "+fmt.Sprintf(format, args...))
}

// isClaim says whether a config string is this volume's claim.
func isClaim(text, generation string) bool {
	c, err := aoe.ParseClaim(text)
	return err == nil && c.Generation == generation
}

// wireStatus is what a failed exchange means to a caller: the outcome is not known, ask again.
func wireStatus(s *slot, err error) error {
	if err == nil {
		return nil
	}
	return status.Errorf(codes.Unavailable, "%s: %v", s.addr, err)
}
