package provision_test

import (
	"context"
	"errors"
	"sync"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// errFault is what an injected fault looks like to the caller.
var errFault = errors.New("injected fault")

// fault is where a step is cut off.
type fault int

const (
	noFault   fault = iota
	failFirst       // nothing is done
	loseAfter       // it is done, but the answer is lost
)

func (f fault) String() string { return [...]string{"no fault", "not done", "answer lost"}[f] }

// steps decides for every step, of store and shelves, whether it is cut off.
type steps struct {
	mu     sync.Mutex
	decide func(op string) fault // nil: never
}

func (s *steps) set(decide func(op string) fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decide = decide
}

func (s *steps) do(op string, f func() error) error {
	if s == nil {
		return f()
	}
	s.mu.Lock()
	what := noFault
	if s.decide != nil {
		what = s.decide(op)
	}
	s.mu.Unlock()
	if what == failFirst {
		return errFault
	}
	if err := f(); err != nil {
		return err
	}
	if what == loseAfter {
		return errFault
	}
	return nil
}

// cutAt cuts off the n-th step from now, 0 the first. reached tells which step that was.
func (s *steps) cutAt(n int, what fault) (reached func() string) {
	var op string
	s.set(func(o string) fault {
		n--
		if n != -1 {
			return noFault
		}
		op = o
		return what
	})
	return func() string { s.mu.Lock(); defer s.mu.Unlock(); return op }
}

// faultyStore is a store whose steps can be cut off.
type faultyStore struct {
	volume.Store
	*steps
}

func (f faultyStore) CreateVolume(ctx context.Context, r *volume.Record) error {
	return f.do("store.CreateVolume", func() error { return f.Store.CreateVolume(ctx, r) })
}

func (f faultyStore) UpdateVolume(ctx context.Context, r *volume.Record) error {
	return f.do("store.UpdateVolume", func() error { return f.Store.UpdateVolume(ctx, r) })
}

func (f faultyStore) DeleteVolume(ctx context.Context, r *volume.Record) error {
	return f.do("store.DeleteVolume", func() error { return f.Store.DeleteVolume(ctx, r) })
}

func (f faultyStore) GetVolume(ctx context.Context, name string) (r *volume.Record, err error) {
	err = f.do("store.GetVolume", func() (err error) { r, err = f.Store.GetVolume(ctx, name); return err })
	return r, err
}

func (f faultyStore) ListVolumes(ctx context.Context) (r []volume.Record, err error) {
	err = f.do("store.ListVolumes", func() (err error) { r, err = f.Store.ListVolumes(ctx); return err })
	return r, err
}

func (f faultyStore) ClaimSlot(ctx context.Context, s volume.Slot) error {
	return f.do("store.ClaimSlot", func() error { return f.Store.ClaimSlot(ctx, s) })
}

func (f faultyStore) GetSlot(ctx context.Context, addr aoe.Addr) (s *volume.Slot, err error) {
	err = f.do("store.GetSlot", func() (err error) { s, err = f.Store.GetSlot(ctx, addr); return err })
	return s, err
}

func (f faultyStore) ListSlots(ctx context.Context) (s []volume.Slot, err error) {
	err = f.do("store.ListSlots", func() (err error) { s, err = f.Store.ListSlots(ctx); return err })
	return s, err
}

func (f faultyStore) ReleaseSlot(ctx context.Context, s volume.Slot) error {
	return f.do("store.ReleaseSlot", func() error { return f.Store.ReleaseSlot(ctx, s) })
}
