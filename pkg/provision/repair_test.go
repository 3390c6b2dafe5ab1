package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// A network interface that is new, or came up late, gets in when the node is published
// again, as csi-attacher does with one that ListVolumes does not show; none gets lost.
func TestNewInterfacesAreAdmitted(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	w.publish(v, "n1")
	put := func(macs ...string) {
		n := &volume.Node{Name: "n1"}
		for _, mac := range macs {
			n.Interfaces = append(n.Interfaces, volume.Interface{MAC: mac})
		}
		if err := w.store.PutNode(ctx, n); err != nil {
			t.Fatal(err)
		}
		if err := w.service.Repair(ctx); err != nil {
			t.Fatal(err)
		}
	}
	const old, late = "52:54:00:00:00:01", "52:54:00:00:00:11"
	tests := []struct {
		name  string
		macs  []string
		shown bool
		want  []string // after it was published again
	}{
		{"the same", []string{old}, true, []string{old}},
		{"none while it starts", nil, true, []string{old}},
		{"one more", []string{old, late}, false, []string{old, late}},
		{"fewer", []string{late}, true, []string{old, late}},
	}
	for _, tt := range tests {
		put(tt.macs...)
		got, err := w.service.Get(ctx, v.ID.String())
		if err != nil || (len(got.Nodes) == 1) != tt.shown {
			t.Errorf("%s: shown as published to %v, %v", tt.name, got.Nodes, err)
		}
		if len(tt.macs) == 0 {
			continue
		}
		w.publish(v, "n1")
		if macs := w.shelves[0].lun(string(v.ID.Generation)).Admitted[0].Macs; !slices.Equal(macs, tt.want) {
			t.Errorf("%s: the shelf lets in %v, want %v", tt.name, macs, tt.want)
		}
		w.wantAdmitted(v, "n1")
	}
}

// Another controller takes the node off while this one is waiting for the shelf.
func TestAdmissionThatCameTooLate(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	other := provision.NewService(provision.Config{Store: w.store, Shelves: w.set})
	w.shelves[0].admit = func() {
		if err := other.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.service.Publish(ctx, v.ID.String(), "n1", false); !errors.Is(err, volume.ErrPending) {
		t.Errorf("publish: %v", err)
	}
	w.wantAdmitted(v)
}

func TestRepair(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		w := newWorldOn(t, s, newFakeShelf(7))
		ctx := context.Background()
		kept, doomed := w.create("kept", 4096), w.create("doomed", 4096)
		w.publish(kept, "n1")
		// A deletion that was cut off at the shelf, and is not repeated.
		w.shelves[0].setDown(true)
		if err := w.service.Delete(ctx, doomed.ID.String()); err == nil {
			t.Fatal("deleted without the shelf")
		}
		if err := w.service.Repair(ctx); err == nil || !strings.Contains(err.Error(), "doomed") {
			t.Errorf("repair without the shelf: %v", err)
		}
		w.shelves[0].setDown(false)
		// A slot that nobody owns, and an owner without its slot.
		if err := s.ClaimSlot(ctx, volume.Slot{VolumeName: "ghost", Generation: "aaaaaaaaaaaaaaaa"}); err != nil {
			t.Fatal(err)
		}
		if err := s.ReleaseSlot(ctx, volume.Slot{Addr: kept.ID.Addr, VolumeName: "kept", Generation: kept.ID.Generation}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.service.Repair(ctx); err != nil {
				t.Fatal(err)
			}
		}
		w.wantObjects(1)
		w.wantAdmitted(kept, "n1")
	})
}
