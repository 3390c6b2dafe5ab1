package provision_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const mib = 1 << 20

// wantSizes checks intent, what the record knows of the shelf, what callers see, and the LUN itself, in MiB.
func (w *world) wantSizes(v *volume.Volume, intent, known, shown, lun int64) {
	w.t.Helper()
	rec, err := w.store.GetVolume(context.Background(), v.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := w.service.Get(context.Background(), v.ID.String())
	if err != nil {
		w.t.Fatal(err)
	}
	have := [4]int64{rec.SizeBytes / mib, rec.ShelfBytes / mib, got.SizeBytes / mib, int64(w.shelves[0].lun(string(v.ID.Generation)).SizeBytes) / mib}
	if want := [4]int64{intent, known, shown, lun}; have != want {
		w.t.Errorf("intent, known, shown and LUN have %v MiB, want %v (message %q)", have, want, rec.Message)
	}
}

func TestExpand(t *testing.T) {
	for _, tt := range []struct {
		name            string
		required, limit int64
		size            int64 // MiB
		err             error
	}{
		{"larger", 64 * mib, 0, 64, nil},
		{"rounded up", 64*mib - 1, 0, 64, nil},
		{"within a limit", 64 * mib, 64 * mib, 64, nil},
		{"the same", 32 * mib, 0, 32, nil},
		{"smaller", 1, 0, 32, nil},
		{"only a limit", 0, 40 * mib, 32, nil},
		{"no size", 0, 0, 32, volume.ErrInvalid},
		{"negative", -1, 0, 32, volume.ErrInvalid},
		{"limit below what is required", 64 * mib, 48 * mib, 32, volume.ErrInvalid},
		{"limit below what it has", 1, 16 * mib, 32, volume.ErrOutOfRange},
		{"limit that no multiple meets", 40*mib + 1, 40*mib + 2, 32, volume.ErrOutOfRange},
		{"more than there is room for", 900 * mib, 0, 32, volume.ErrNoSpace},
		{"more than the shelf", 2000 * mib, 0, 32, volume.ErrOutOfRange},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeShelf(7)
			f.size = 1000 * mib
			w := newWorld(t, f)
			w.create("other", 200*mib)
			v := w.create("pvc-1", 32*mib)
			for range 2 {
				got, err := w.service.Expand(context.Background(), v.ID.String(), tt.required, tt.limit)
				if !errors.Is(err, tt.err) || err == nil && got != tt.size*mib {
					t.Errorf("%d bytes, %v; want %d MiB, %v", got, err, tt.size, tt.err)
				}
			}
			w.wantSizes(v, tt.size, tt.size, tt.size, tt.size)
			// What was refused leaves no wish behind that a repair could fulfil later.
			if err := w.service.Repair(context.Background()); err != nil {
				t.Error(err)
			}
			w.wantSizes(v, tt.size, tt.size, tt.size, tt.size)
		})
	}
}

func TestExpandOfNoVolume(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	for _, handle := range []string{"", "nonsense", "e7.3-abcdefghijklm234"} {
		if _, err := w.service.Expand(context.Background(), handle, mib, 0); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("%q: %v", handle, err)
		}
	}
}

// Wherever it is cut off, the retry ends in the same place; and so does a repair if nobody retries.
func TestExpandCutOff(t *testing.T) {
	for _, retry := range []bool{true, false} {
		cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
			w := newWorldOn(t, store, newFakeShelf(7))
			v := w.create("pvc-1", 32*mib)
			cut(w)
			expand := func() error {
				_, err := w.service.Expand(context.Background(), v.ID.String(), 64*mib, 0)
				return err
			}
			if retry {
				insist(t, w, expand)
				w.wantSizes(v, 64, 64, 64, 64)
				return
			}
			failed := expand() != nil
			w.steps.set(nil)
			w.restart()
			if err := w.service.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
			rec, err := store.GetVolume(context.Background(), "pvc-1")
			if err != nil {
				t.Fatal(err)
			}
			if size := rec.SizeBytes / mib; size != 64 && (size != 32 || !failed) {
				t.Errorf("the record says %d MiB", size)
			}
			w.wantSizes(v, rec.SizeBytes/mib, rec.SizeBytes/mib, rec.SizeBytes/mib, rec.SizeBytes/mib)
		})
	}
}

// While the shelf is away the wish stands, is shown as such, and may become smaller.
func TestExpandWhileTheShelfIsAway(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	v := w.create("pvc-1", 32*mib)
	w.shelves[0].setDown(true)
	for _, wish := range []int64{128, 64} {
		if _, err := w.service.Expand(context.Background(), v.ID.String(), wish*mib, 0); !errors.Is(err, volume.ErrUnavailable) {
			t.Errorf("error %v, want ErrUnavailable", err)
		}
		w.wantSizes(v, wish, 32, 32, 32)
	}
	rec, err := w.store.GetVolume(context.Background(), "pvc-1")
	if err != nil || !strings.Contains(rec.Message, "down") {
		t.Errorf("message %q, %v", rec.Message, err)
	}
	// What it has already needs no shelf.
	if size, err := w.service.Expand(context.Background(), v.ID.String(), 32*mib, 0); err != nil || size != 32*mib {
		t.Errorf("%d bytes, %v", size, err)
	}
	w.wantSizes(v, 32, 32, 32, 32)
	if _, err := w.service.Expand(context.Background(), v.ID.String(), 64*mib, 0); err == nil {
		t.Error("grown on a shelf that is down")
	}
	w.shelves[0].setDown(false)
	if err := w.service.Repair(context.Background()); err != nil {
		t.Error(err)
	}
	w.wantSizes(v, 64, 64, 64, 64)
	if rec, err := w.store.GetVolume(context.Background(), "pvc-1"); err != nil || rec.Message != "" {
		t.Errorf("message %q, %v", rec.Message, err)
	}
}
