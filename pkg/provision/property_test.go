package provision_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// checks is how many sequences of calls are tried on each kind of store, unless
// -rapid.checks says otherwise; more of them is for long runs.
const checks = "25"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", checks); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestRandomCalls makes random calls while steps fail at random, processes restart and
// shelves go away, and checks that no volume is ever served to two nodes, that a success
// means what it says, and that nothing is left when everything was deleted.
func TestRandomCalls(t *testing.T) {
	for kind, newStore := range stores {
		t.Run(kind, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				w := newWorldOn(t, newStore(t), newFakeShelf(7), newFakeShelf(8))
				defer func() {
					if err := w.set.Close(); err != nil {
						rt.Error(err)
					}
				}()
				m := &model{world: w, handles: map[string]string{}, on: map[string]string{}}
				random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
				percent := rapid.IntRange(0, 30).Draw(rt, "faults in percent")
				w.steps.set(func(string) fault {
					if random.IntN(100) >= percent {
						return noFault
					}
					return fault(1 + random.IntN(2))
				})
				for range rapid.IntRange(1, 40).Draw(rt, "calls") {
					m.call(rt)
					m.check(rt)
				}
				m.finish(rt)
			})
		})
	}
}

// model is what callers were told.
type model struct {
	*world
	handles map[string]string // by name, of volumes whose creation succeeded and that nobody asked to delete
	on      map[string]string // handle → node, of publications that succeeded and that nobody asked to take back
	all     []string          // every handle that was ever told
}

func (m *model) call(rt *rapid.T) {
	ctx := context.Background()
	name := fmt.Sprintf("pvc-%d", rapid.IntRange(0, 3).Draw(rt, "volume"))
	node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node")
	handle := m.handles[name]
	if handle == "" && len(m.all) > 0 {
		handle = rapid.SampledFrom(m.all).Draw(rt, "old handle")
	}
	switch what := rapid.SampledFrom([]string{"create", "create", "delete", "publish", "publish", "unpublish", "restart", "shelf"}).Draw(rt, "call"); what {
	case "create":
		v, err := m.service.Create(ctx, volume.CreateRequest{Name: name, RequiredBytes: 4096})
		if err != nil {
			return
		}
		if old := m.handles[name]; old != "" && old != v.ID.String() {
			rt.Fatalf("%s was %s and is %s", name, old, v.ID)
		}
		m.handles[name] = v.ID.String()
		m.all = append(m.all, v.ID.String())
	case "delete":
		err := m.service.Delete(ctx, handle)
		if on := m.on[handle]; on != "" && err == nil {
			rt.Fatalf("deleted %s while node %s has it", handle, on)
		}
		if !errors.Is(err, volume.ErrInUse) {
			m.forget(handle) // done or begun: a retry of the creation may make another one
		}
	case "publish":
		if _, err := m.service.Publish(ctx, handle, node, false); err == nil {
			if on := m.on[handle]; on != "" && on != node {
				rt.Fatalf("%s is on %s and was published to %s", handle, on, node)
			}
			m.on[handle] = node
		}
	case "unpublish":
		if m.on[handle] == node {
			delete(m.on, handle) // from now on only "may be"
		}
		if err := m.service.Unpublish(ctx, handle, node); err == nil && slices.Contains(m.served(handle), node) {
			rt.Fatalf("%s is unpublished from %s, which can still write", handle, node)
		}
	case "restart":
		m.restart()
	case "shelf":
		f := m.shelves[rapid.IntRange(0, 1).Draw(rt, "shelf")]
		f.setDown(rapid.Bool().Draw(rt, "down"))
	}
}

func (m *model) forget(handle string) {
	for name, h := range m.handles {
		if h == handle {
			delete(m.handles, name)
		}
	}
}

// served returns the nodes that can write to the volume now.
func (m *model) served(handle string) []string {
	id, err := volume.ParseID(handle)
	if err != nil {
		return nil
	}
	var nodes []string
	for _, f := range m.shelves {
		nodes = append(nodes, f.admitted(string(id.Generation))...)
	}
	return nodes
}

// check looks at what is true on the shelves, whatever the callers were told.
func (m *model) check(rt *rapid.T) {
	for _, handle := range m.handles {
		id, err := volume.ParseID(handle)
		if err != nil {
			rt.Fatal(err)
		}
		if m.shelves[0].lun(string(id.Generation)) == nil && m.shelves[1].lun(string(id.Generation)) == nil {
			rt.Fatalf("volume %s has no LUN", handle)
		}
	}
	for _, handle := range m.all {
		nodes := m.served(handle)
		if len(nodes) > 1 {
			rt.Fatalf("%s is served to %v", handle, nodes)
		}
		if on := m.on[handle]; on != "" && !slices.Contains(nodes, on) {
			rt.Fatalf("%s was published to %s, which is not served", handle, on)
		}
	}
}

// finish lets everything work again, deletes everything and looks for leaks.
func (m *model) finish(rt *rapid.T) {
	ctx := context.Background()
	m.steps.set(nil)
	for _, f := range m.shelves {
		f.setDown(false)
	}
	m.restart()
	m.service = provision.NewService(provision.Config{Store: m.store, Shelves: m.set})
	// The side-cars repeat what failed until it succeeds.
	for i := range 4 {
		v, err := m.service.Create(ctx, volume.CreateRequest{Name: fmt.Sprintf("pvc-%d", i), RequiredBytes: 4096})
		if err != nil && !errors.Is(err, volume.ErrInUse) {
			rt.Fatal(err)
		}
		if err == nil {
			m.all = append(m.all, v.ID.String())
		}
	}
	for _, handle := range m.all {
		if err := m.service.Unpublish(ctx, handle, ""); err != nil {
			rt.Fatal(err)
		}
		if err := m.service.Delete(ctx, handle); err != nil {
			rt.Fatal(err)
		}
	}
	if err := m.service.Repair(ctx); err != nil {
		rt.Fatal(err)
	}
	if records, slots, luns := m.objects(); records+slots+luns != 0 {
		rt.Fatalf("left: %d records, %d slots, %d LUNs", records, slots, luns)
	}
}
