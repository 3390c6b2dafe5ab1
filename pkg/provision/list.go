package provision

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sort"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Get returns a volume that is made; ErrNotFound otherwise.
func (s *Service) Get(ctx context.Context, handle string) (*volume.Volume, error) {
	id, err := volume.ParseID(handle)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", volume.ErrNotFound, err.Error())
	}
	rec, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if rec.Phase != volume.PhaseReady {
		return nil, fmt.Errorf("%w: volume %s is %s", volume.ErrNotFound, handle, rec.Phase)
	}
	return rec.Volume(), nil
}

// tokenPrefix is the version of List's tokens: "the page begins after this name".
const tokenPrefix = "1:"

// List returns the volumes that are made, in the order of their names, at most limit of
// them (0: all), and the token of the next page. ErrBadToken for a token that List did
// not return; ErrInvalid for a negative limit.
func (s *Service) List(ctx context.Context, token string, limit int) ([]volume.Volume, string, error) {
	if limit < 0 {
		return nil, "", fmt.Errorf("%w: %d entries", volume.ErrInvalid, limit)
	}
	after := ""
	if token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(raw) <= len(tokenPrefix) || string(raw[:len(tokenPrefix)]) != tokenPrefix {
			return nil, "", fmt.Errorf("%w: %q", volume.ErrBadToken, token)
		}
		after = string(raw[len(tokenPrefix):])
	}
	records, err := s.store.ListVolumes(ctx)
	if err != nil {
		return nil, "", err
	}
	first := 0
	if token != "" {
		first = sort.Search(len(records), func(i int) bool { return records[i].Name > after })
	}
	var page []volume.Volume
	for i := first; i < len(records); i++ {
		if records[i].Phase != volume.PhaseReady {
			continue
		}
		if limit > 0 && len(page) == limit {
			last := page[limit-1].Name
			return page, base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + last)), nil
		}
		page = append(page, *records[i].Volume())
	}
	return page, "", nil
}

// Capacity says what new volumes with these parameters could take. Shelves that do not
// answer count as full; ErrUnavailable if none answers.
func (s *Service) Capacity(ctx context.Context, req volume.CapacityRequest) (volume.Capacity, error) {
	var total volume.Capacity
	survey, err := s.shelves.Survey(ctx)
	if err != nil {
		return total, err
	}
	var silent []error
	for i := range survey {
		c := &survey[i]
		switch {
		case c.Err != nil:
			silent = append(silent, c.Err)
		case !req.Parameters.Selects(c.Number, c.Labels):
		case c.Capacity.Fixed && !req.Parameters.Names(c.Number, c.Labels):
		case elsewhere(c, req.Segments) != "" || c.Capacity.FreeSlots == 0:
		default:
			total.AvailableBytes += c.Capacity.AvailableBytes
			total.MaxVolumeBytes = max(total.MaxVolumeBytes, min(c.Capacity.MaxLunBytes, c.Capacity.AvailableBytes))
		}
	}
	if len(survey) > 0 && len(silent) == len(survey) {
		return total, fmt.Errorf("capacity: %w", errors.Join(silent...))
	}
	return total, nil
}

// Ready says whether the store can be read, for probes.
func (s *Service) Ready(ctx context.Context) error {
	_, err := s.store.ListSlots(ctx)
	return err
}
