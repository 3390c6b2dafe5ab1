package provision

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// staleRetries is how often a change is tried again when somebody else changed the
// record in between: the status loop and the service write the same object.
const staleRetries = 8

// Config is what a Service needs.
type Config struct {
	Store    volume.Store
	Shelves  *Shelves
	Recorder Recorder // nil: events go to the log
}

// Service makes, removes and publishes volumes. Its methods may be called at the same
// time; two calls for one volume at once make the second fail with volume.ErrPending.
type Service struct {
	store    volume.Store
	shelves  *Shelves
	recorder Recorder
	busy     keyLocks
	slots    reservations
}

// NewService returns a service over a store and a set of shelves. It starts nothing.
func NewService(c Config) *Service {
	if c.Recorder == nil {
		c.Recorder = logRecorder{}
	}
	return &Service{store: c.Store, shelves: c.Shelves, recorder: c.Recorder}
}

// errUnchanged is what a change function answers when there is nothing to write.
var errUnchanged = errors.New("nothing to change")

// change applies f to the record and writes it, again on a fresh copy when somebody else
// wrote in between. f decides on what it is given, never on what was read before.
func (s *Service) change(ctx context.Context, rec *volume.Record, f func(*volume.Record) error) error {
	for range staleRetries {
		switch err := f(rec); {
		case errors.Is(err, errUnchanged):
			return nil
		case err != nil:
			return err
		}
		err := s.store.UpdateVolume(ctx, rec)
		if !errors.Is(err, volume.ErrStale) {
			return err
		}
		if err := s.reread(ctx, rec); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: volume %s is changed by others all the time", volume.ErrPending, rec.Name)
}

// reread brings the record up to date; ErrPending if it is another volume's by now.
func (s *Service) reread(ctx context.Context, rec *volume.Record) error {
	fresh, err := s.store.GetVolume(ctx, rec.Name)
	if err != nil && !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	if err != nil || fresh.ID != rec.ID {
		return fmt.Errorf("%w: volume %s was removed meanwhile", volume.ErrPending, rec.Name)
	}
	*rec = *fresh
	return nil
}

// find returns the record of a handle. The slot's owner is the short way; a slot that was
// released already, by a deletion that was cut off, leaves only the generation to go by.
func (s *Service) find(ctx context.Context, id volume.ID) (*volume.Record, error) {
	slot, err := s.store.GetSlot(ctx, id.Addr)
	switch {
	case err == nil && slot.Generation == id.Generation:
		rec, err := s.store.GetVolume(ctx, slot.VolumeName)
		if err == nil && rec.ID.Generation == id.Generation {
			return rec, nil
		}
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return nil, err
		}
	case err != nil && !errors.Is(err, volume.ErrNotFound):
		return nil, err
	}
	all, err := s.store.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID.Generation == id.Generation {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("%w: volume %s", volume.ErrNotFound, id)
}

// locked finds the volume of a handle and holds it until unlock is called. The record is
// read under the lock. A handle that is malformed is not found.
func (s *Service) locked(ctx context.Context, handle string) (rec *volume.Record, unlock func(), err error) {
	id, err := volume.ParseID(handle)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", volume.ErrNotFound, err.Error())
	}
	rec, err = s.find(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	unlock, err = s.busy.lock(rec.Name)
	if err != nil {
		return nil, nil, err
	}
	if err := s.reread(ctx, rec); err != nil {
		unlock()
		return nil, nil, err
	}
	return rec, unlock, nil
}

// note leaves an error in the record for people to read. It is no part of any decision,
// so a failure to write it is only logged.
func (s *Service) note(ctx context.Context, rec *volume.Record, cause error) {
	err := s.change(context.WithoutCancel(ctx), rec, func(r *volume.Record) error {
		if r.Message == cause.Error() {
			return errUnchanged
		}
		r.Message = cause.Error()
		return nil
	})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Message not stored", "volume", rec.Name, "message", cause.Error(), "err", err)
	}
}

// keyLocks lets one call at a time work on a name.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]bool
}

// lock takes the name or fails with ErrPending at once: the caller retries anyway.
func (k *keyLocks) lock(name string) (unlock func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[name] {
		return nil, fmt.Errorf("%w: another call works on volume %s", volume.ErrPending, name)
	}
	if k.held == nil {
		k.held = map[string]bool{}
	}
	k.held[name] = true
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.held, name)
	}, nil
}
