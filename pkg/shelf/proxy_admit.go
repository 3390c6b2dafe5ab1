package shelf

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Admit implements the API: the target is reserved to the node's MACs.
func (p *Proxy) Admit(ctx context.Context, r *shelfv1.AdmitRequest) (*shelfv1.Lun, error) {
	s, generation, end, err := p.begin(r.GetId())
	if err != nil {
		return nil, err
	}
	defer end()
	macs, err := parseMACs(r.GetAdmission().GetMacs())
	if err != nil {
		return nil, err
	}
	node := r.GetAdmission().GetNode()
	rec, err := p.owned(ctx, s, generation)
	if err != nil {
		return nil, err
	}
	if rec.ShelfBytes == 0 || rec.Phase != volume.PhaseReady || rec.Admission(node) == nil {
		return nil, status.Errorf(codes.Aborted, "volume %s is not to be published to node %s", rec.Name, node)
	}
	for _, other := range rec.Admitted {
		if other.Node != node {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is published to node %s", s.addr, other.Node)
		}
	}
	a, err := s.answer()
	if err != nil {
		return nil, err
	}
	// The reservation comes first: initiators wait for the claim.
	if a.Reserve == inband.Yes {
		list, err := p.cfg.Client.Reservation(ctx, a.Path)
		if err != nil {
			return nil, wireStatus(s, err)
		}
		if !reservable(list) && !slices.ContainsFunc(list, func(m aoe.MAC) bool { return slices.Contains(macs, m) }) {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is reserved to %s, which is not node %s", s.addr, list, node)
		}
		if err := p.cfg.Client.ForceReserve(ctx, a.Path, macs); err != nil {
			return nil, wireStatus(s, err)
		}
	}
	if err := p.reclaim(ctx, s, a, rec); err != nil {
		return nil, err
	}
	return p.lun(s, a, rec), nil
}

// Expel implements the API: unless it is another node's by now, the target is reserved to nobody.
func (p *Proxy) Expel(ctx context.Context, r *shelfv1.ExpelRequest) (*shelfv1.Lun, error) {
	s, generation, end, err := p.begin(r.GetId())
	if err != nil {
		return nil, err
	}
	defer end()
	if r.GetNode() == "" {
		return nil, status.Error(codes.InvalidArgument, "node is empty")
	}
	rec, err := p.owned(ctx, s, generation)
	if err != nil {
		return nil, err
	}
	a, err := s.answer()
	if err != nil {
		return nil, err
	}
	if a.Reserve == inband.Yes {
		if err := p.fence(ctx, s, a, rec, r.GetNode()); err != nil {
			return nil, err
		}
	}
	return p.lun(s, a, rec), p.reclaim(ctx, s, a, rec)
}

// fence keeps a node out. When it returns nil, what the node sent before has been executed or refused, too.
func (p *Proxy) fence(ctx context.Context, s *slot, a inband.Answer, rec *volume.Record, node string) error {
	list, err := p.cfg.Client.Reservation(ctx, a.Path)
	if err != nil {
		return wireStatus(s, err)
	}
	allowed := []aoe.MAC{Sentinel}
	for _, other := range rec.Admitted {
		if other.Node != node {
			macs, err := parseMACs(other.MACs)
			if err != nil {
				return err
			}
			allowed = append(allowed, macs...)
		}
	}
	if len(list) > 0 && !slices.ContainsFunc(list, func(m aoe.MAC) bool { return !slices.Contains(allowed, m) }) {
		return nil // the node is not on it
	}
	if err := p.cfg.Client.ForceReserve(ctx, a.Path, []aoe.MAC{Sentinel}); err != nil {
		return wireStatus(s, err)
	}
	select {
	case <-time.After(inband.QuirksOf(a).Drain):
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// reclaim puts the claim back onto a target that forgot it.
func (p *Proxy) reclaim(ctx context.Context, s *slot, a inband.Answer, rec *volume.Record) error {
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err == nil && now.ConfigString == "" {
		now, err = p.cfg.Client.SetConfig(ctx, a.Path, claimOf(rec).String())
	}
	if err != nil {
		return wireStatus(s, err)
	}
	if !isClaim(now.ConfigString, string(rec.ID.Generation)) {
		return status.Errorf(codes.Internal, "%s has the config string %q instead of volume %s's", s.addr, now.ConfigString, rec.Name)
	}
	return nil
}

// restore gives a target that was restarted its reservation and claim back, as the intent has them. While the controller is changing
// who is admitted, that is the controller's to do.
func (p *Proxy) restore(ctx context.Context, s *slot, a inband.Answer, rec *volume.Record) error {
	if rec.Phase != volume.PhaseReady || rec.ShelfBytes == 0 {
		return nil
	}
	allowed := []aoe.MAC{}
	for _, adm := range rec.Admitted {
		if !adm.Confirmed {
			return nil
		}
		macs, err := parseMACs(adm.MACs)
		if err != nil {
			return err
		}
		allowed = append(allowed, macs...)
	}
	if len(allowed) == 0 {
		allowed = append(allowed, Sentinel)
	}
	if a.Reserve == inband.Yes {
		list, err := p.cfg.Client.Reservation(ctx, a.Path)
		if err == nil && len(list) == 0 {
			err = p.cfg.Client.Reserve(ctx, a.Path, allowed) // not by force: if somebody was faster, that counts
		}
		if err != nil {
			return wireStatus(s, err)
		}
	}
	return p.reclaim(ctx, s, a, rec)
}

func parseMACs(texts []string) ([]aoe.MAC, error) {
	var macs []aoe.MAC
	for _, text := range texts {
		mac, err := aoe.ParseMAC(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		macs = append(macs, mac)
	}
	if len(macs) == 0 || len(macs) > aoe.MaxReserved {
		return nil, status.Errorf(codes.InvalidArgument, "%d MACs: a reservation takes 1 to %d", len(macs), aoe.MaxReserved)
	}
	return macs, nil
}
