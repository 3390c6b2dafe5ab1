package provision

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Refresh asks the sources which addresses there are and every address which shelf is
// there. Silence is no error: what an address said last is remembered. It fails only when
// no source could name anything.
func (s *Shelves) Refresh(ctx context.Context) error {
	if err := s.discover(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, min(surveyTimeout, s.config.Timeout))
	defer cancel()
	each(s.list(), func(e *endpoint) struct{} {
		info, err := e.info(ctx)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Shelf does not answer", "address", e.address, "err", err)
			return struct{}{}
		}
		s.learn(e, info)
		return struct{}{}
	})
	return nil
}

// Run refreshes at intervals until ctx ends, so that duplicates and changed numbers are
// noticed before somebody asks.
func (s *Shelves) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := s.Refresh(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Shelves not refreshed")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// discover asks the sources and connects to what they name.
func (s *Shelves) discover(ctx context.Context) error {
	s.discovering.Lock()
	defer s.discovering.Unlock()
	addresses, err := s.addresses(ctx)
	if err != nil {
		return err
	}
	s.adopt(ctx, addresses)
	return nil
}

// addresses returns what the sources name. A source that fails counts with what it named
// last: losing the API server loses no shelf.
func (s *Shelves) addresses(ctx context.Context) ([]string, error) {
	var all []string
	var failed []error
	for i, source := range s.config.Sources {
		named, err := source(ctx)
		if err != nil {
			failed = append(failed, err)
			named = s.named[i]
		} else {
			s.named[i] = named
		}
		all = append(all, named...)
	}
	if len(failed) > 0 && len(all) == 0 {
		return nil, errors.Join(failed...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// adopt connects to new addresses and drops those that are named no more.
func (s *Shelves) adopt(ctx context.Context, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, address := range addresses {
		if s.endpoints[address] != nil {
			continue
		}
		e, err := newEndpoint(address, s.config.Credentials, s.config.Timeout, s.config.DialOptions)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Shelf not used", "address", address)
			continue
		}
		s.endpoints[address] = e
	}
	for address, e := range s.endpoints {
		if slices.Contains(addresses, address) {
			continue
		}
		delete(s.endpoints, address)
		if err := e.conn.Close(); err != nil {
			klog.FromContext(ctx).V(2).Info("Connection not closed", "address", address, "err", err)
		}
	}
}

func (s *Shelves) list() []*endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := make([]*endpoint, 0, len(s.endpoints))
	for _, e := range s.endpoints {
		ends = append(ends, e)
	}
	slices.SortFunc(ends, func(a, b *endpoint) int { return strings.Compare(a.address, b.address) })
	return ends
}

// each calls f for all endpoints at the same time and returns the answers in their order.
func each[T any](ends []*endpoint, f func(*endpoint) T) []T {
	answers := make([]T, len(ends))
	var wg sync.WaitGroup
	for i, e := range ends {
		wg.Go(func() { answers[i] = f(e) })
	}
	wg.Wait()
	return answers
}
