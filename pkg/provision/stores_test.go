package provision_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// stores are the kinds of store; each must keep the whole contract.
var stores = map[string]func(testing.TB) volume.Store{
	"files":      func(t testing.TB) volume.Store { return newFileStore(t) },
	"kubernetes": func(t testing.TB) volume.Store { return provision.NewKubernetesStore(newFakeClient(t)) },
}

func newFileStore(t testing.TB) *provision.FileStore {
	t.Helper()
	store, err := provision.OpenFileStore(memoryDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func newFakeClient(t testing.TB, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AoEVolume{}).WithObjects(objects...).Build()
}

// memoryDir returns a directory in memory if there is one: these tests make thousands of
// files durable.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aoe-csi-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func eachStore(t *testing.T, f func(*testing.T, volume.Store)) {
	for kind, newStore := range stores {
		t.Run(kind, func(t *testing.T) { f(t, newStore(t)) })
	}
}

func fullRecord(name string) *volume.Record {
	seven := uint16(7)
	return &volume.Record{
		Name:      name,
		ID:        volume.ID{Addr: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklm234"},
		SizeBytes: 5 << 30,
		Parameters: volume.Parameters{
			Shelf: &seven, FSType: "xfs", MkfsOptions: "-m reflink=0 -K", Frontend: "nbd", DeadTime: 90 * time.Second, OnlineExpansion: true,
			ShelfSelector: "tier=ssd",
		},
		Segment: "a", ShelfUUID: "u-7", Claim: "default/data", Phase: volume.PhasePending,
	}
}

func TestStoreKeepsRecords(t *testing.T) {
	names := []string{
		"pvc-5b3a1f0e", "UPPER case", strings.Repeat("x", 128), strings.Repeat("ß/", 64), "../../etc/passwd", ".", "..", "a\x00b", "x-y",
	}
	eachStore(t, func(t *testing.T, s volume.Store) {
		ctx := context.Background()
		for _, name := range names {
			r := fullRecord(name)
			if err := s.CreateVolume(ctx, r); err != nil {
				t.Fatalf("create %q: %v", name, err)
			}
			if err := s.CreateVolume(ctx, fullRecord(name)); !errors.Is(err, volume.ErrExists) {
				t.Errorf("create %q again: %v", name, err)
			}
			got, err := s.GetVolume(ctx, name)
			if err != nil || !got.Created.Equal(r.Created) {
				t.Fatalf("get %q: %+v, %v", name, got, err)
			}
			got.Created = r.Created
			if !reflect.DeepEqual(got, r) {
				t.Errorf("got %+v, want %+v", got, r)
			}
		}
		list, err := s.ListVolumes(ctx)
		if err != nil || len(list) != len(names) {
			t.Errorf("list: %d records, %v", len(list), err)
		}
		for i := range list[1:] {
			if list[i].Name >= list[i+1].Name {
				t.Errorf("%q comes before %q", list[i].Name, list[i+1].Name)
			}
		}
	})
}

func TestStoreRefusesOldVersions(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		ctx := context.Background()
		r := fullRecord("pvc-1")
		if err := s.UpdateVolume(ctx, r); !errors.Is(err, volume.ErrStale) {
			t.Errorf("update what is not there: %v", err)
		}
		if err := s.CreateVolume(ctx, r); err != nil {
			t.Fatal(err)
		}
		old := *r
		r.Phase, r.Message, r.ShelfBytes, r.SizeBytes = volume.PhaseReady, "because", 4<<30, 6<<30
		r.Admitted = []volume.Admission{{Node: "n1", MACs: []string{"52:54:00:00:00:01"}, ReadOnly: true, Confirmed: true, Frontend: "nbd", FrontendReason: "auto"}}
		if err := s.UpdateVolume(ctx, r); err != nil {
			t.Fatal(err)
		}
		got, err := s.GetVolume(ctx, "pvc-1")
		if err != nil || got.Version == old.Version || !reflect.DeepEqual(got.Admitted, r.Admitted) || got.Phase != r.Phase || got.Message != r.Message ||
			got.ShelfBytes != 4<<30 || got.SizeBytes != 6<<30 {
			t.Errorf("after the update: %+v, %v", got, err)
		}
		if err := s.UpdateVolume(ctx, &old); !errors.Is(err, volume.ErrStale) {
			t.Errorf("update with an old version: %v", err)
		}
		if err := s.DeleteVolume(ctx, &old); !errors.Is(err, volume.ErrStale) {
			t.Errorf("delete with an old version: %v", err)
		}
		for range 2 {
			if err := s.DeleteVolume(ctx, r); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if _, err := s.GetVolume(ctx, "pvc-1"); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("get after delete: %v", err)
		}
		if err := s.CreateVolume(ctx, fullRecord("pvc-1")); err != nil {
			t.Errorf("create after delete: %v", err)
		}
		if err := s.UpdateVolume(ctx, r); !errors.Is(err, volume.ErrStale) {
			t.Errorf("update with the version of a record that is gone: %v", err)
		}
	})
}

func TestStoreSlots(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		ctx := context.Background()
		mine := volume.Slot{Addr: aoe.Addr{Shelf: 7, Slot: 3}, VolumeName: "pvc-1", Generation: "aaaaaaaaaaaaaaaa"}
		other, newer := mine, mine
		other.VolumeName, newer.Generation = "pvc-2", "bbbbbbbbbbbbbbbb"
		if _, err := s.GetSlot(ctx, mine.Addr); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("get a free slot: %v", err)
		}
		for range 2 {
			if err := s.ClaimSlot(ctx, mine); err != nil {
				t.Fatal(err)
			}
		}
		for _, foreign := range []volume.Slot{other, newer} {
			if err := s.ClaimSlot(ctx, foreign); !errors.Is(err, volume.ErrExists) {
				t.Errorf("claim %+v: %v", foreign, err)
			}
			if err := s.ReleaseSlot(ctx, foreign); err != nil {
				t.Errorf("release %+v: %v", foreign, err)
			}
		}
		if got, err := s.GetSlot(ctx, mine.Addr); err != nil || *got != mine {
			t.Errorf("slot %+v, %v", got, err)
		}
		if all, err := s.ListSlots(ctx); err != nil || len(all) != 1 || all[0] != mine {
			t.Errorf("slots %+v, %v", all, err)
		}
		for range 2 {
			if err := s.ReleaseSlot(ctx, mine); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.ClaimSlot(ctx, other); err != nil {
			t.Errorf("claim a released slot: %v", err)
		}
	})
}

// Of many that claim a slot at the same time, one gets it.
func TestStoreSlotHasOneOwner(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		const n = 20
		won := make(chan bool, n)
		for i := range n {
			go func() {
				err := s.ClaimSlot(context.Background(), volume.Slot{VolumeName: string(rune('a' + i)), Generation: "aaaaaaaaaaaaaaaa"})
				if err != nil && !errors.Is(err, volume.ErrExists) {
					t.Error(err)
				}
				won <- err == nil
			}()
		}
		winners := 0
		for range n {
			if <-won {
				winners++
			}
		}
		if winners != 1 {
			t.Errorf("%d owners of one slot", winners)
		}
	})
}

func TestStoreNodes(t *testing.T) {
	eachStore(t, func(t *testing.T, s volume.Store) {
		ctx := context.Background()
		if _, err := s.GetNode(ctx, "n1"); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("get a node that is not there: %v", err)
		}
		n := &volume.Node{
			Name: "n1", Segments: []string{"default"}, InitiatorUUID: "u", Software: "v1",
			Interfaces: []volume.Interface{{Name: "eth1", MAC: "52:54:00:00:00:01", MTU: 9000, Up: true}},
			Frontends:  []volume.Frontend{{Name: "nbd", Available: true, Reason: "there", LiveResize: true}, {Name: "ublk", Reason: "not built"}},
		}
		if err := s.PutNode(ctx, n); err != nil {
			t.Fatal(err)
		}
		n.Attachments = []volume.Attachment{{
			VolumeID: "e7.3-abcdefghijklm234", Device: "/dev/nbd0", Frontend: "nbd", FrontendReason: "the only one", State: "live", Message: "m",
			Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Paths: []volume.Path{{Interface: "eth1", RemoteMAC: "52:54:00:00:00:77", State: "up"}},
		}}
		for range 2 {
			if err := s.PutNode(ctx, n); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.GetNode(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if !got.Attachments[0].Since.Equal(n.Attachments[0].Since) {
			t.Errorf("since %v", got.Attachments[0].Since)
		}
		got.Attachments[0].Since = n.Attachments[0].Since
		if !reflect.DeepEqual(got, n) {
			t.Errorf("got %+v, want %+v", got, n)
		}
		if all, err := s.ListNodes(ctx); err != nil || len(all) != 1 {
			t.Errorf("nodes %+v, %v", all, err)
		}
	})
}

func TestFileStoreIsOneControllers(t *testing.T) {
	dir := t.TempDir()
	open := func() *provision.FileStore {
		s, err := provision.OpenFileStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := open(), open()
	if err := first.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := second.Lock(); err == nil || !strings.Contains(err.Error(), "another controller") {
		t.Errorf("second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(dir, "volumes", "123.tmp")
	if err := os.WriteFile(leftover, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.Lock(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftover of a crash: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileStoreRefusesNewerFormats(t *testing.T) {
	dir := t.TempDir()
	s, err := provision.OpenFileStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ content, text string }{
		{`{"format": 2, "name": "v"}`, "newer"},
		{`{"name": "v"}`, "format 0"},
		{`{"format": 1, "name": "v", "id": "e7"}`, "e7"},
		{`{`, "JSON"},
	}
	for _, tt := range tests {
		if err := os.WriteFile(filepath.Join(dir, "volumes", "v.json"), []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetVolume(context.Background(), "v"); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.content, err, tt.text)
		}
	}
}

// kubectl delete aoev: the intent stays until the shelf has given up the data.
func TestDeletionByHandLeaksNothing(t *testing.T) {
	c := newFakeClient(t)
	w := newWorldOn(t, provision.NewKubernetesStore(c), newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 4096)
	var obj v1alpha1.AoEVolume
	if err := c.Get(ctx, client.ObjectKey{Name: "pvc-1"}, &obj); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, &obj); err != nil {
		t.Fatal(err)
	}
	if got, err := w.service.Get(ctx, v.ID.String()); err != nil || got.ID != v.ID {
		t.Errorf("the volume is gone: %v", err)
	}
	w.publish(v, "n1")
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := w.service.Delete(ctx, v.ID.String()); err != nil {
		t.Fatal(err)
	}
	w.wantObjects(0)
}
