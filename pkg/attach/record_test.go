package attach

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

func TestRecordsComeBack(t *testing.T) {
	r := records{dir: t.TempDir()}
	var want []*record
	for _, id := range []string{"e7.3", "e7.3-abcdefghijklmnop", "../../etc/passwd", ".", "with space/and:more", strings.Repeat("/", maxVolumeID)} {
		rec := &record{
			Format: recordFormat, BootID: "boot", Initiator: "uuid", Reason: "asked for",
			Options: Options{VolumeID: id, Target: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklmnop", Frontend: "auto",
				DeadTime: time.Minute, ReadOnly: true, Interfaces: []string{"eth1"}},
			Device:      blockdev.State{Frontend: "nbd", Number: 3, ID: id + "@g", Params: blockdev.Params{ID: id + "@g", SizeBytes: 1 << 40}},
			Incarnation: 1 << 60, CacheEpoch: 1<<64 - 1, Lost: true, Started: true, Attached: time.Unix(1, 0).UTC(),
		}
		if err := r.write(rec); err != nil {
			t.Fatalf("%q: %v", id, err)
		}
		want = append(want, rec)
	}
	got, err := r.load()
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d records, %v", len(got), err)
	}
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || reflect.DeepEqual(g, w)
		}
		if !found {
			t.Errorf("record of %q did not come back as it was", w.Options.VolumeID)
		}
		if err := errors.Join(r.remove(w.Options.VolumeID), r.remove(w.Options.VolumeID)); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestDamagedRecordsAreErrorsBesideTheOthers(t *testing.T) {
	r := records{dir: t.TempDir()}
	if err := r.write(&record{Format: recordFormat, Options: Options{VolumeID: "good"}}); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"cut.json": `{"format":1,"opt`, "newer.json": `{"format":2,"options":{"volumeID":"x"}}`, "none.json": `{}`,
		"nobody.json": `{"format":1}`, "temporary.json.new": `{`,
	} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := r.load()
	if len(got) != 1 || got[0].Options.VolumeID != "good" {
		t.Errorf("%d records", len(got))
	}
	for _, name := range []string{"cut.json", "newer.json", "none.json", "nobody.json"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("no error about %s in: %v", name, err)
		}
	}
}

func TestIncarnationsOnlyGrow(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	uuid := ""
	now := time.Unix(1_800_000_000, 0)
	for restart := range 4 {
		id, err := openIdentity(dir)
		if err != nil {
			t.Fatal(err)
		}
		if uuid != "" && id.String() != uuid {
			t.Fatalf("UUID changed from %s to %s", uuid, id)
		}
		uuid = id.String()
		for i := range 5 {
			seen := uint64(0)
			if i == 3 {
				seen = last + uint64(2*time.Hour)
			}
			next, err := id.next(now, seen)
			if err != nil {
				t.Fatal(err)
			}
			if next <= last || next <= seen {
				t.Fatalf("restart %d: %d after %d, seen %d", restart, next, last, seen)
			}
			last = next
		}
		now = now.Add(-24 * time.Hour) // the clock is set back over every restart
	}
}

func TestIdentityOfANewerVersionIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{`{"format":9}`, `{"format":1,"uuid":"zz"}`, `{"form`, ``} {
		if err := os.WriteFile(filepath.Join(dir, "initiator.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openIdentity(dir); err == nil {
			t.Errorf("identity %q was taken", content)
		}
	}
}

func TestKeyedLocks(t *testing.T) {
	var k keyedLocks
	ctx := context.Background()
	unlock, err := k.lock(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := k.lock(short, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("second lock: %v", err)
	}
	unlock()
	var group sync.WaitGroup
	count := 0
	for range 20 {
		group.Go(func() {
			unlock, err := k.lock(ctx, "a")
			if err != nil {
				t.Error(err)
				return
			}
			count++ // the race detector watches
			unlock()
		})
	}
	group.Wait()
	if count != 20 || len(k.locks) != 0 {
		t.Errorf("%d of 20 had the lock; %d keys left", count, len(k.locks))
	}
}
