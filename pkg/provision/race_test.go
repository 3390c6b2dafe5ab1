package provision_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// together runs the functions at the same time and returns their errors.
func together(fs ...func() error) []error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errs
}

// Two controllers may be alive at the same time, when one of them lost its lease and does
// not know yet. They share nothing but the store.
func TestTwoControllers(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		w := newWorldOn(t, s, newFakeShelf(7), newFakeShelf(8))
		ctx := context.Background()
		other := provision.NewService(provision.Config{Store: s, Shelves: w.set})
		services := []*provision.Service{w.service, other}
		for range 20 {
			var made [2]*volume.Volume
			create := func(i int) func() error {
				return func() (err error) {
					made[i], err = services[i].Create(ctx, volume.CreateRequest{Name: "pvc-1", RequiredBytes: 4096})
					return err
				}
			}
			for i, err := range together(create(0), create(1)) {
				if err != nil && !errors.Is(err, volume.ErrPending) {
					t.Fatalf("create on controller %d: %v", i, err)
				}
			}
			v := w.create("pvc-1", 4096)
			for i := range made {
				if made[i] != nil && made[i].ID != v.ID {
					t.Fatalf("controller %d made %s, there is %s", i, made[i].ID, v.ID)
				}
			}
			w.wantObjects(1)

			publish := func(i int, node string) func() error {
				return func() error {
					_, err := services[i].Publish(ctx, v.ID.String(), node, false)
					return err
				}
			}
			errs := together(publish(0, "n1"), publish(1, "n2"))
			if errs[0] == nil && errs[1] == nil {
				t.Fatal("two controllers admitted two nodes")
			}
			if served := append(w.shelves[0].admitted(string(v.ID.Generation)), w.shelves[1].admitted(string(v.ID.Generation))...); len(served) > 1 {
				t.Fatalf("served to %v", served)
			}
			for _, node := range []string{"n1", "n2"} {
				if err := w.service.Unpublish(ctx, v.ID.String(), node); err != nil {
					t.Fatal(err)
				}
			}
			remove := func(i int) func() error {
				return func() error { return services[i].Delete(ctx, v.ID.String()) }
			}
			for i, err := range together(remove(0), remove(1)) {
				if err != nil && !errors.Is(err, volume.ErrPending) {
					t.Fatalf("delete on controller %d: %v", i, err)
				}
			}
			if err := w.service.Delete(ctx, v.ID.String()); err != nil {
				t.Fatal(err)
			}
			w.wantObjects(0)
		}
	})
}
