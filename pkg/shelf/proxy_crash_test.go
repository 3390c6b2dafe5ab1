package shelf_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

var crashRuns = flag.Int("crash-runs", 100, "how many runs TestPoolCrashes makes; 1000 in make test-static")

var errCrash = errors.New("the controller crashed")

// crashing is a store whose user crashes before or after a step: from then on nothing it does has an effect.
type crashing struct {
	volume.Store
	left  int  // steps until then
	after bool // the last step takes effect, and its answer is lost
	each  func()
}

func (c *crashing) step(f func() error) error {
	c.each()
	c.left--
	switch {
	case c.left > 0:
		return f()
	case c.left == 0 && c.after:
		return errors.Join(f(), errCrash)
	}
	return errCrash
}

func (c *crashing) CreateVolume(ctx context.Context, r *volume.Record) error {
	return c.step(func() error { return c.Store.CreateVolume(ctx, r) })
}

func (c *crashing) UpdateVolume(ctx context.Context, r *volume.Record) error {
	return c.step(func() error { return c.Store.UpdateVolume(ctx, r) })
}

func (c *crashing) DeleteVolume(ctx context.Context, r *volume.Record) error {
	return c.step(func() error { return c.Store.DeleteVolume(ctx, r) })
}

func (c *crashing) ClaimSlot(ctx context.Context, s volume.Slot) error {
	return c.step(func() error { return c.Store.ClaimSlot(ctx, s) })
}

func (c *crashing) ReleaseSlot(ctx context.Context, s volume.Slot) error {
	return c.step(func() error { return c.Store.ReleaseSlot(ctx, s) })
}

func (c *crashing) ListSlots(ctx context.Context) ([]volume.Slot, error) {
	c.each()
	return c.Store.ListSlots(ctx)
}

// TestPoolCrashes: controllers crash at every step of making and deleting volumes, targets forget what they were told at any time. No
// target is ever two volumes', none that is a volume's is taken for free, and no data of a deleted volume is left.
func TestPoolCrashes(t *testing.T) {
	targets := vblades(256, 256, 256)
	p := newPool(t, false, targets...)
	began, sum := time.Now(), &crashSum{}
	for run := range *crashRuns {
		dice := rand.New(rand.NewPCG(uint64(run), 6))
		crash(t, p, dice, run, sum)
		if t.Failed() {
			t.Fatalf("run %d", run)
		}
	}
	if sum.crashes < *crashRuns || sum.restarts < *crashRuns {
		t.Errorf("%d crashes and %d restarts are too few to say anything", sum.crashes, sum.restarts)
	}
	t.Logf("%d runs: %d volumes, controllers crashed %d times, targets forgot all %d times; none was two volumes', in %v",
		*crashRuns, 2**crashRuns, sum.crashes, sum.restarts, time.Since(began).Round(time.Millisecond))
}

// crashSum is what happened in all runs.
type crashSum struct{ crashes, restarts int }

// crash is a run: two volumes are made, one is deleted, with crashes and restarts; then all is brought to its end and looked at.
func crash(t *testing.T, p *pool, dice *rand.Rand, run int, sum *crashSum) {
	restarts := func() {
		if dice.IntN(4) == 0 {
			p.targets[dice.IntN(len(p.targets))].Restart()
			sum.restarts++
		}
		if dice.IntN(4) == 0 {
			p.look()
		}
	}
	// try lets a controller begin, which crashes, and finishes with one that does not.
	try := func(f func(*provision.Service) error) {
		store := &crashing{Store: p.store, left: 1 + dice.IntN(6), after: dice.IntN(2) == 0, each: restarts}
		service, closeIt := p.controller(store)
		_ = f(service) // whatever it comes to
		if store.left <= 0 {
			sum.crashes++
		}
		closeIt()
		p.finish(func() error {
			p.look()
			return f(p.service)
		})
	}
	names := []string{fmt.Sprintf("a-%d", run), fmt.Sprintf("b-%d", run)}
	for _, name := range names {
		try(func(s *provision.Service) error {
			_, err := s.Create(t.Context(), p.request(name, 4096))
			return err
		})
	}
	a, b := record(t, p, names[0]), record(t, p, names[1])
	if a.ID.Addr == b.ID.Addr {
		t.Errorf("both volumes have %s", a.ID.Addr)
	}
	p.look()
	for _, rec := range []*volume.Record{a, b} {
		d := p.targets[rec.ID.Addr.Slot]
		if c, err := aoe.ParseClaim(d.Config()); err != nil || c.Generation != string(rec.ID.Generation) {
			t.Errorf("%s is volume %s's and says %q", d.Addr, rec.Name, d.Config())
		}
		d.Put(100, 7)
	}
	for i, rec := range []*volume.Record{a, b} {
		try(func(s *provision.Service) error { return s.Delete(t.Context(), rec.ID.String()) })
		if d := p.targets[rec.ID.Addr.Slot]; d.Used() != 0 {
			t.Errorf("%s has data of volume %s, which is deleted", d.Addr, rec.Name)
		}
		if other := p.targets[b.ID.Addr.Slot]; i == 0 && other.Used() != 1 {
			t.Errorf("%s lost the data of volume %s", other.Addr, b.Name)
		}
	}
	check(t, p.service.Repair(t.Context()))
	p.look()
	for _, d := range p.targets {
		if d.Config() != "" {
			t.Errorf("%s is nobody's and says %q", d.Addr, d.Config())
		}
	}
}

func record(t *testing.T, p *pool, name string) *volume.Record {
	t.Helper()
	rec, err := p.store.GetVolume(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}
