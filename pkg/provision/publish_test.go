package provision_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func (w *world) publish(v *volume.Volume, node string) *volume.Publication {
	w.t.Helper()
	p, err := w.service.Publish(context.Background(), v.ID.String(), node, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// wantAdmitted checks that shelf and record agree on who is admitted.
func (w *world) wantAdmitted(v *volume.Volume, nodes ...string) {
	w.t.Helper()
	var onShelf []string
	for _, f := range w.shelves {
		onShelf = append(onShelf, f.admitted(string(v.ID.Generation))...)
	}
	got, err := w.service.Get(context.Background(), v.ID.String())
	if err != nil {
		w.t.Fatal(err)
	}
	if !slices.Equal(onShelf, nodes) || !slices.Equal(got.Nodes, nodes) {
		w.t.Errorf("admitted on the shelf %v, in the record %v; want %v", onShelf, got.Nodes, nodes)
	}
}

// wantNotElsewhere checks that the volume cannot be published to another node while it is
// not known whether it is on the first.
func (w *world) wantNotElsewhere(v *volume.Volume, node string) {
	w.t.Helper()
	rec, err := w.store.GetVolume(context.Background(), v.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(rec.Admitted) == 0 {
		return // the shelf was not asked yet
	}
	if _, err := w.service.Publish(context.Background(), v.ID.String(), node, false); !errors.Is(err, volume.ErrInUse) && !errors.Is(err, volume.ErrPending) {
		w.t.Errorf("publish to %s while another node may be admitted: %v", node, err)
	}
}

func TestPublish(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v, err := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-1", Parameters: volume.Parameters{DeadTime: time.Minute, Frontend: "nbd"}})
	if err != nil {
		t.Fatal(err)
	}
	want := volume.Publication{Target: v.ID.Addr, Generation: v.ID.Generation, Frontend: "nbd", FrontendReason: "the StorageClass asks for it", DeadTime: time.Minute}
	for range 2 {
		if p := w.publish(v, "n1"); !reflect.DeepEqual(*p, want) {
			t.Errorf("publication %+v, want %+v", p, want)
		}
	}
	w.wantAdmitted(v, "n1")
	lun := w.shelves[0].lun(string(v.ID.Generation))
	if macs := lun.Admitted[0].Macs; !slices.Equal(macs, []string{"52:54:00:00:00:01"}) {
		t.Errorf("admitted MACs %v", macs)
	}

	if _, err := w.service.Publish(ctx, v.ID.String(), "n2", false); !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("publish to a second node: %v", err)
	}
	if _, err := w.service.Publish(ctx, v.ID.String(), "n1", true); !errors.Is(err, volume.ErrConflict) {
		t.Errorf("publish read-only where it is read-write: %v", err)
	}
	if err := w.service.Delete(ctx, v.ID.String()); !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("delete while published: %v", err)
	}
	if err := w.service.Unpublish(ctx, v.ID.String(), "n2"); err != nil {
		t.Errorf("unpublish from a node that does not have it: %v", err)
	}
	w.wantAdmitted(v, "n1")
	for range 2 {
		if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
			t.Fatal(err)
		}
	}
	w.wantAdmitted(v)
	w.publish(v, "n2")
	w.wantAdmitted(v, "n2")
}

func TestPublishRefuses(t *testing.T) {
	tests := []struct {
		name   string
		handle string // empty: of a volume that exists
		node   string
		want   error
		text   string
	}{
		{"unknown node", "", "n9", volume.ErrNotFound, `node "n9" has not told its MACs`},
		{"node without interfaces", "", "bare", volume.ErrPrecondition, "no network interface"},
		{"node without front end", "", "oldkernel", volume.ErrPrecondition, "nbd: module not found"},
		{"malformed handle", "what", "n1", volume.ErrNotFound, `"what"`},
		{"unknown volume", "e7.0-aaaaaaaaaaaaaaaa", "n1", volume.ErrNotFound, "e7.0-aaaaaaaaaaaaaaaa"},
	}
	w := newWorld(t, newFakeShelf(7))
	nodes := []volume.Node{{Name: "bare"}, {
		Name:       "oldkernel",
		Interfaces: []volume.Interface{{Name: "eth1", MAC: "52:54:00:00:00:09"}},
		Frontends:  []volume.Frontend{{Name: "nbd", Reason: "module not found"}},
	}}
	for i := range nodes {
		if err := w.store.PutNode(context.Background(), &nodes[i]); err != nil {
			t.Fatal(err)
		}
	}
	v := w.create("pvc-1", 4096)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			handle := tt.handle
			if handle == "" {
				handle = v.ID.String()
			}
			_, err := w.service.Publish(context.Background(), handle, tt.node, false)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
			w.wantAdmitted(v)
		})
	}
}

func TestUnpublishFailsUntilTheShelfConfirms(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	w.publish(v, "n1")
	w.shelves[0].setDown(true)
	for range 2 {
		if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); !errors.Is(err, volume.ErrUnavailable) {
			t.Errorf("unpublish without the shelf: %v", err)
		}
		if _, err := w.service.Publish(ctx, v.ID.String(), "n2", false); !errors.Is(err, volume.ErrInUse) {
			t.Errorf("published elsewhere while the first node is not off: %v", err)
		}
		w.restart()
	}
	w.shelves[0].setDown(false)
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
		t.Error(err)
	}
	w.wantAdmitted(v)
}

// A node that the record has lost, as after a restored backup, is still on the shelf.
func TestTheShelfKnowsMoreThanTheRecord(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	w.publish(v, "n1")
	rec, err := w.store.GetVolume(ctx, "pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	rec.Admitted = nil
	if err := w.store.UpdateVolume(ctx, rec); err != nil {
		t.Fatal(err)
	}
	if _, err := w.service.Publish(ctx, v.ID.String(), "n2", false); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("publish: %v", err)
	}
	if err := w.service.Delete(ctx, v.ID.String()); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("delete: %v", err)
	}
}

func TestUnpublishWhatIsGone(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	for _, handle := range []string{"", "what", "e7.0-aaaaaaaaaaaaaaaa"} {
		if err := w.service.Unpublish(ctx, handle, "n1"); err != nil {
			t.Errorf("unpublish %q: %v", handle, err)
		}
		if err := w.service.Delete(ctx, handle); err != nil {
			t.Errorf("delete %q: %v", handle, err)
		}
	}
}

func TestTwoCallsForOneVolume(t *testing.T) {
	f := newFakeShelf(7)
	entered, leave := make(chan struct{}), make(chan struct{})
	f.admit = func() { close(entered); <-leave }
	w := newWorld(t, f)
	ctx := context.Background()
	v, other := w.create("pvc-1", 4096), w.create("pvc-2", 4096)
	first := make(chan error)
	go func() {
		_, err := w.service.Publish(ctx, v.ID.String(), "n1", false)
		first <- err
	}()
	<-entered
	_, publish := w.service.Publish(ctx, v.ID.String(), "n1", false)
	_, create := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-1"})
	for what, err := range map[string]error{
		"publish": publish, "create": create,
		"unpublish": w.service.Unpublish(ctx, v.ID.String(), "n1"),
		"delete":    w.service.Delete(ctx, v.ID.String()),
	} {
		if !errors.Is(err, volume.ErrPending) {
			t.Errorf("%s while another call is under way: %v", what, err)
		}
	}
	if err := w.service.Delete(ctx, other.ID.String()); err != nil {
		t.Errorf("another volume has to wait, too: %v", err)
	}
	close(leave)
	if err := <-first; err != nil {
		t.Error(err)
	}
	w.wantAdmitted(v, "n1")
}

// The shelf admits the node, its answer is lost, and it stays away: the node may be able
// to write, so nobody else gets the volume before the shelf said otherwise.
func TestLostAdmissionIsRemembered(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	w.steps.set(func(op string) fault {
		if op == "shelf7.Admit" {
			w.shelves[0].setDown(true)
			return loseAfter
		}
		return noFault
	})
	if _, err := w.service.Publish(ctx, v.ID.String(), "n1", false); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("publish: %v", err)
	}
	w.steps.set(nil)
	w.restart()
	if _, err := w.service.Publish(ctx, v.ID.String(), "n2", false); !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("publish to another node: %v", err)
	}
	if err := w.service.Delete(ctx, v.ID.String()); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("delete: %v", err)
	}
	if got, err := w.service.Get(ctx, v.ID.String()); err != nil || len(got.Nodes) != 0 {
		t.Errorf("shown as published to %v, %v: the shelf did not say so", got, err)
	}
	w.shelves[0].setDown(false)
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
		t.Fatal(err)
	}
	w.publish(v, "n2")
}
