package provision_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func TestListPages(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	var names []string
	for i := range 7 {
		names = append(names, w.create(fmt.Sprintf("pvc-%d", i), 4096).Name)
	}
	// One that is not made yet is not listed.
	w.shelves[0].setDown(true)
	if _, err := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-0a"}); err == nil {
		t.Fatal("made without a shelf")
	}
	for _, size := range []int{0, 1, 2, 3, 6, 7, 8} {
		var got []string
		token, pages := "", 0
		for {
			page, next, err := w.service.List(ctx, token, size)
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 && len(page) > size {
				t.Errorf("%d entries on a page of %d", len(page), size)
			}
			for _, v := range page {
				got = append(got, v.Name)
			}
			if pages++; next == "" || pages > 20 {
				break
			}
			token = next
		}
		if !slices.Equal(got, names) {
			t.Errorf("pages of %d: %v, want %v", size, got, names)
		}
	}
}

// A page goes on where the last one ended although volumes came and went in between.
func TestListWhileVolumesChange(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	b := w.create("b", 4096)
	w.create("d", 4096)
	_, token, err := w.service.List(ctx, "", 1)
	if err != nil || token == "" {
		t.Fatalf("token %q, %v", token, err)
	}
	if err := w.service.Delete(ctx, b.ID.String()); err != nil {
		t.Fatal(err)
	}
	w.create("a", 4096)
	w.create("c", 4096)
	page, next, err := w.service.List(ctx, token, 0)
	if err != nil || next != "" || len(page) != 2 || page[0].Name != "c" || page[1].Name != "d" {
		t.Errorf("rest %+v, token %q, %v", page, next, err)
	}
}

func TestListRefuses(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	for _, token := range []string{"x", "5", "****", base64.RawURLEncoding.EncodeToString([]byte("1:")), base64.RawURLEncoding.EncodeToString([]byte("2:a"))} {
		if _, _, err := w.service.List(context.Background(), token, 0); !errors.Is(err, volume.ErrBadToken) {
			t.Errorf("token %q: %v", token, err)
		}
	}
	if _, _, err := w.service.List(context.Background(), "", -1); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("negative limit: %v", err)
	}
}

func TestListShowsPublishedNodes(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	w.publish(w.create("pvc-1", 4096), "n1")
	page, _, err := w.service.List(context.Background(), "", 0)
	if err != nil || len(page) != 1 || !slices.Equal(page[0].Nodes, []string{"n1"}) {
		t.Errorf("page %+v, %v", page, err)
	}
}

func TestCapacity(t *testing.T) {
	small, large, other := newFakeShelf(1), newFakeShelf(2), newFakeShelf(3)
	small.size, large.size, other.size, other.segment = 10<<30, 20<<30, 40<<30, "b"
	two, nine := uint16(2), uint16(9)
	tests := []struct {
		name string
		req  volume.CapacityRequest
		want volume.Capacity
	}{
		{"all", volume.CapacityRequest{}, volume.Capacity{AvailableBytes: 70 << 30, MaxVolumeBytes: 40 << 30}},
		{"a segment", volume.CapacityRequest{Segments: []string{"default"}}, volume.Capacity{AvailableBytes: 30 << 30, MaxVolumeBytes: 20 << 30}},
		{"no such segment", volume.CapacityRequest{Segments: []string{"c"}}, volume.Capacity{}},
		{"a shelf", volume.CapacityRequest{Parameters: volume.Parameters{Shelf: &two}}, volume.Capacity{AvailableBytes: 20 << 30, MaxVolumeBytes: 20 << 30}},
		{"no such shelf", volume.CapacityRequest{Parameters: volume.Parameters{Shelf: &nine}}, volume.Capacity{}},
	}
	w := newWorld(t, small, large, other)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := w.service.Capacity(context.Background(), tt.req)
			if err != nil || got != tt.want {
				t.Errorf("capacity %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
	large.setDown(true)
	if got, err := w.service.Capacity(context.Background(), volume.CapacityRequest{}); err != nil || got.AvailableBytes != 50<<30 {
		t.Errorf("with one shelf down: %+v, %v", got, err)
	}
	small.setDown(true)
	other.setDown(true)
	_, err := w.service.Capacity(context.Background(), volume.CapacityRequest{})
	if !errors.Is(err, volume.ErrUnavailable) || !strings.Contains(err.Error(), "shelf 2 at unix:///shelf-1") {
		t.Errorf("with all down: %v", err)
	}
}
