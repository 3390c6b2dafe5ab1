package attach

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
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
	for number, id := range []string{"e7.3", "e7.3-abcdefghijklmnop", "../../etc/passwd", ".", "with space/and:more", strings.Repeat("/", maxVolumeID)} {
		rec := &record{
			BootID: "boot", Initiator: "uuid", Reason: "asked for",
			Options: Options{VolumeID: id, Target: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklmnop", Frontend: "auto",
				DeadTime: time.Minute, ReadOnly: true, Interfaces: []string{"eth1"}},
			Device:      blockdev.State{Frontend: "nbd", Number: number, ID: id + "@g", Params: blockdev.Params{ID: id + "@g", SizeBytes: 1 << 40}},
			Incarnation: 1 << 60, CacheEpoch: 1<<64 - 1, Lost: true, LostReason: "a flush failed", Started: true, Attached: time.Unix(1, 0).UTC(),
		}
		if err := r.write(rec); err != nil {
			t.Fatalf("%q: %v", id, err)
		}
		want = append(want, rec)
	}
	got, bad, err := r.load()
	if err != nil || len(bad) != 0 || len(got) != len(want) {
		t.Fatalf("%d records, damaged %v, %v", len(got), bad, err)
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

// aRecord is one that is whole.
func aRecord(volumeID string, number int, started bool) *record {
	return &record{BootID: "boot", Options: Options{VolumeID: volumeID}, Started: started,
		Device: blockdev.State{Frontend: "nbd", Number: number, ID: volumeID}}
}

func TestDamagedRecordsAreToldOfBesideTheOthers(t *testing.T) {
	r := records{dir: t.TempDir()}
	if err := r.write(aRecord("good", 1, true)); err != nil {
		t.Fatal(err)
	}
	whole, err := encodeRecord(aRecord("somebody", 2, true))
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := encodeRecord(aRecord("", 3, true))
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(whole), "format 2", "format 3", 1)
	for _, tt := range []struct{ name, content, volume, text string }{
		{"cut.record", string(whole[:len(whole)/2]), "cut", "checksum"},
		{"newer.record", newer, "newer", "format 3"},
		{"empty.record", "", "empty", "checksum"},
		{"old.record", `{"format":1,"options":{"volumeID":"old"}}`, "old", "checksum"},
		{"nobody.record", string(nobody), "nobody", "no volume"},
		{"another.record", string(whole), "another", `"somebody"`},
		{"strange", "x", "", "checksum"},
	} {
		path := filepath.Join(r.dir, tt.name)
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		good, bad, err := r.load()
		if err != nil || len(good) != 1 || good[0].Options.VolumeID != "good" {
			t.Errorf("beside %s: %d records, %v", tt.name, len(good), err)
		}
		if len(bad) != 1 || bad[0].path != path || bad[0].volumeID != tt.volume || !strings.Contains(bad[0].err.Error(), path) ||
			!strings.Contains(bad[0].err.Error(), tt.text) {
			t.Errorf("%s: %+v; want volume %q and %q", tt.name, bad, tt.volume, tt.text)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "good.record.new"), whole[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	if good, bad, err := r.load(); err != nil || len(good) != 1 || len(bad) != 0 {
		t.Errorf("beside a write that was cut off: %d records, %v, %v", len(good), bad, err)
	}
}

// TestNoDamageGoesUnnoticed: a record that was cut anywhere, or has any bit flipped, is refused.
func TestNoDamageGoesUnnoticed(t *testing.T) {
	whole, err := encodeRecord(&record{BootID: "boot", Options: Options{VolumeID: "e7.3"}, CacheEpoch: 1 << 60, Lost: true,
		Device: blockdev.State{Frontend: "nbd", Number: 17, Params: blockdev.Params{SizeBytes: 1 << 33}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeRecord(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if rec, err := decodeRecord(whole[:n]); err == nil {
			t.Errorf("cut after %d of %d bytes it is %+v", n, len(whole), rec)
		}
		for bit := range 8 {
			whole[n] ^= 1 << bit
			if rec, err := decodeRecord(whole); err == nil {
				t.Errorf("with bit %d of byte %d flipped it is %+v", bit, n, rec)
			}
			whole[n] ^= 1 << bit
		}
	}
	if _, err := decodeRecord(append(whole, '\n')); err == nil {
		t.Error("one byte longer it is taken")
	}
}

func TestTwoRecordsOfOneDevice(t *testing.T) {
	for _, tt := range []struct {
		name    string
		records []*record
		good    []string
	}{
		{"both used", []*record{aRecord("a", 3, true), aRecord("b", 3, true), aRecord("c", 4, true)}, []string{"c"}},
		{"one was only planned", []*record{aRecord("a", 3, true), aRecord("b", 3, false)}, []string{"a"}},
		{"both were only planned", []*record{aRecord("a", 3, false), aRecord("b", 3, false)}, nil},
		{"of other times", []*record{aRecord("a", 3, true), {BootID: "earlier", Options: Options{VolumeID: "b"}, Started: true,
			Device: blockdev.State{Frontend: "nbd", Number: 3}}}, []string{"a", "b"}},
		{"of other front ends", []*record{aRecord("a", 3, true), {BootID: "boot", Options: Options{VolumeID: "b"}, Started: true,
			Device: blockdev.State{Frontend: "ublk", Number: 3}}}, []string{"a", "b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := records{dir: t.TempDir()}
			for _, rec := range tt.records {
				if err := r.write(rec); err != nil {
					t.Fatal(err)
				}
			}
			good, bad, err := r.load()
			var names []string
			for _, rec := range good {
				names = append(names, rec.Options.VolumeID)
			}
			if err != nil || !slices.Equal(names, tt.good) || len(good)+len(bad) != len(tt.records) {
				t.Errorf("taken: %v, damaged: %v, %v; want %v", names, bad, err, tt.good)
			}
			for _, d := range bad {
				if !strings.Contains(d.err.Error(), d.path) || !strings.Contains(d.err.Error(), "nbd3") || d.volumeID == "" {
					t.Errorf("told of as %+v", d)
				}
			}
		})
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
