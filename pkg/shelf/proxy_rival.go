package shelf

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
)

// alone is RESOURCE_EXHAUSTED if another cluster is known to have a volume on the shelf and the target forgets its claims: the moment it
// restarts, the other cluster's volume would be a free LUN to this one, and the other way round. What targets said last counts, so that two clusters
// that come at the same time are noticed by the later claims only; a target that is silent is nobody's.
func (p *Proxy) alone(ctx context.Context, a inband.Answer) error {
	kind := inband.QuirksOf(a)
	if !kind.Forgets {
		return nil
	}
	for _, s := range p.slots {
		claim, err := p.rival(ctx, s)
		if err != nil {
			return err
		}
		if claim != "" {
			return status.Errorf(codes.ResourceExhausted, "%s has the claim %q, which no volume of this cluster made. Another cluster uses the shelf, and %s forgets "+
				"claims when it restarts: give each cluster a shelf of its own. If that cluster is no more, remove the claim (aoecfg, or restart the target)",
				s.addr, claim, kind.Name)
		}
	}
	return nil
}

// rival returns the claim on a slot if it is not of this cluster; empty: there is none, or it is.
func (p *Proxy) rival(ctx context.Context, s *slot) (string, error) {
	a, err := s.answer()
	if err != nil {
		return "", nil // nobody can use it now
	}
	claim, err := aoe.ParseClaim(a.ConfigString)
	if err != nil || s.isKnown(claim.Generation) {
		return "", nil
	}
	rec, err := p.intent(ctx, s.addr)
	if err != nil {
		return "", err
	}
	if rec != nil && string(rec.ID.Generation) == claim.Generation {
		s.setKnown(claim.Generation)
		return "", nil
	}
	// What it answered last may be of a volume that is gone since: a claim goes before its intent.
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err != nil || !isClaim(now.ConfigString, claim.Generation) {
		return "", nil
	}
	return now.ConfigString, nil
}

// isKnown says whether a volume of this cluster is known to have made the claim.
func (s *slot) isKnown(generation string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known == generation
}

func (s *slot) setKnown(generation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = generation
}
