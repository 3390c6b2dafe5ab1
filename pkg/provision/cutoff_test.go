package provision_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// cutEverywhere runs f, on each kind of store, once for each step it has, cut off there in
// both ways. f builds its world on the store and calls cut right before what is to be cut
// off.
func cutEverywhere(t *testing.T, f func(t *testing.T, store volume.Store, cut func(*world))) {
	for kind, newStore := range stores {
		for _, what := range []fault{failFirst, loseAfter} {
			for n := 0; ; n++ {
				reached := func() string { return "" }
				t.Run(fmt.Sprintf("%s step %d %s", kind, n, what), func(t *testing.T) {
					f(t, newStore(t), func(w *world) { reached = w.steps.cutAt(n, what) })
					t.Logf("cut off: %s", reached())
				})
				if reached() == "" {
					if n < 4 {
						t.Errorf("only %d steps were seen: nothing is cut off", n)
					}
					break
				}
			}
		}
	}
}

// insist repeats a call, each time as a new process, until it succeeds.
func insist(t *testing.T, w *world, f func() error) {
	t.Helper()
	var err error
	for range 5 {
		if err = f(); err == nil {
			w.steps.set(nil)
			return
		}
		w.restart()
	}
	t.Fatalf("still failing: %v", err)
}

func TestCreateCutOff(t *testing.T) {
	cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
		w := newWorldOn(t, store, newFakeShelf(7), newFakeShelf(8))
		cut(w)
		var v *volume.Volume
		insist(t, w, func() (err error) {
			v, err = w.service.Create(context.Background(), volume.CreateRequest{Name: "pvc-1", RequiredBytes: 4096})
			return err
		})
		w.wantObjects(1)
		again := w.create("pvc-1", 4096)
		if again.ID != v.ID {
			t.Errorf("was %s, is %s", v.ID, again.ID)
		}
		if err := w.service.Delete(context.Background(), v.ID.String()); err != nil {
			t.Error(err)
		}
		w.wantObjects(0)
	})
}

func TestCreateOnARefusingShelfCutOff(t *testing.T) {
	cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
		first, second := newFakeShelf(7), newFakeShelf(8)
		second.size--
		first.setFull(true)
		w := newWorldOn(t, store, first, second)
		cut(w)
		insist(t, w, func() error {
			_, err := w.service.Create(context.Background(), volume.CreateRequest{Name: "pvc-1", RequiredBytes: 4096})
			return err
		})
		w.wantObjects(1)
	})
}

func TestDeleteCutOff(t *testing.T) {
	cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
		w := newWorldOn(t, store, newFakeShelf(7))
		v := w.create("pvc-1", 4096)
		cut(w)
		insist(t, w, func() error { return w.service.Delete(context.Background(), v.ID.String()) })
		w.wantObjects(0)
	})
}

// The name is asked for again while its deletion is half done: the new volume is another one.
func TestCreateAfterADeleteThatWasCutOff(t *testing.T) {
	cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
		w := newWorldOn(t, store, newFakeShelf(7))
		v := w.create("pvc-1", 4096)
		cut(w)
		err := w.service.Delete(context.Background(), v.ID.String())
		w.steps.set(nil)
		w.restart()
		next := w.create("pvc-1", 4096)
		if err == nil && next.ID == v.ID {
			t.Errorf("deleted volume %s came back", v.ID)
		}
		w.wantObjects(1)
		if lun := w.shelves[0].lun(string(next.ID.Generation)); lun == nil {
			t.Errorf("volume %s has no LUN", next.ID)
		}
	})
}

func TestPublishCutOff(t *testing.T) {
	cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
		w := newWorldOn(t, store, newFakeShelf(7))
		v := w.create("pvc-1", 4096)
		cut(w)
		insist(t, w, func() error {
			_, err := w.service.Publish(context.Background(), v.ID.String(), "n1", false)
			if err != nil {
				w.wantNotElsewhere(v, "n2")
			}
			return err
		})
		w.wantAdmitted(v, "n1")
	})
}

func TestUnpublishCutOff(t *testing.T) {
	for _, node := range []string{"n1", ""} {
		t.Run("node "+node, func(t *testing.T) {
			cutEverywhere(t, func(t *testing.T, store volume.Store, cut func(*world)) {
				w := newWorldOn(t, store, newFakeShelf(7))
				v := w.create("pvc-1", 4096)
				w.publish(v, "n1")
				cut(w)
				insist(t, w, func() error {
					err := w.service.Unpublish(context.Background(), v.ID.String(), node)
					if left := w.shelves[0].admitted(string(v.ID.Generation)); err == nil && len(left) > 0 {
						t.Errorf("unpublished, but the shelf still serves %v", left)
					}
					return err
				})
				w.wantAdmitted(v)
				w.publish(v, "n2")
			})
		})
	}
}

// The shelf makes the LUN, its answer is lost, and it stays away for a while: nothing is
// made elsewhere, although another shelf has room.
func TestLostAnswerAndUnreachableShelf(t *testing.T) {
	first, second := newFakeShelf(7), newFakeShelf(8)
	second.size--
	w := newWorld(t, first, second)
	w.steps.set(func(op string) fault {
		if op != "shelf7.CreateLun" {
			return noFault
		}
		first.setDown(true)
		return loseAfter
	})
	req := volume.CreateRequest{Name: "pvc-1", RequiredBytes: 4096}
	for range 3 {
		_, err := w.service.Create(context.Background(), req)
		if !errors.Is(err, volume.ErrUnavailable) {
			t.Fatalf("error %v, want ErrUnavailable", err)
		}
		w.steps.set(nil)
		w.restart()
	}
	if n, calls := second.count("CreateLun"); n != 0 || calls != 0 {
		t.Errorf("the other shelf was asked: %d LUNs after %d calls", n, calls)
	}
	rec, err := w.store.GetVolume(context.Background(), "pvc-1")
	if err != nil || rec.Phase != volume.PhaseCreating || rec.Message == "" {
		t.Errorf("the record does not say what it waits for: %+v, %v", rec, err)
	}
	first.setDown(false)
	if v := w.create("pvc-1", 4096); v.ID.Addr.Shelf != 7 {
		t.Errorf("made on shelf %d", v.ID.Addr.Shelf)
	}
	w.wantObjects(1)
}
