package target

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func TestFlushSyncs(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	for i, command := range []aoe.ATACommand{aoe.ATAFlush, aoe.ATAFlushExt} {
		before := disk.syncs.Load()
		wantOK(t, a.call(a.ata(tag(epoch, uint32(i)), aoe.ATAFields{Command: command}, nil)))
		if disk.syncs.Load() != before+1 {
			t.Fatalf("%v did not sync", command)
		}
	}
}

// A failed flush fails all later ones of the session, until it opens again under a new cache epoch.
func TestFailedFlushIsLatched(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	o := a.open(aoe.OpenSession, uuidA, 1, testGen)
	epoch, cache := o.Epoch(), o.CacheEpoch()
	disk.failSync.Store(true)
	wantATA(t, a.call(a.flush(tag(epoch, 1))), 0x61, 0x04)
	disk.failSync.Store(false)
	// While the loss is being stored the LUN is unavailable; then the flush fails.
	last := uint32(1)
	for {
		last++
		if f := a.call(a.flush(tag(epoch, last))); !f.IsError() {
			wantATA(t, f, 0x61, 0x04)
			break
		}
	}
	fua := aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATAWriteDMAFUAExt, Sectors: 1}
	wantATA(t, a.call(a.ata(tag(epoch, last+1), fua, block(1, 1))), 0x61, 0x04)
	wantOK(t, a.call(a.write(tag(epoch, last+2), 0, block(1, 1))))
	again := a.open(aoe.OpenSession, uuidA, 2, testGen)
	if again.CacheEpoch() == cache {
		t.Fatal("cache epoch did not change")
	}
	wantOK(t, a.call(a.flush(tag(again.Epoch(), 1))))
	// The new epoch is durable.
	r.stop()
	r.start()
	if o := r.client(macA).open(aoe.OpenSession, uuidA, 3, testGen); o.CacheEpoch() != again.CacheEpoch() {
		t.Fatal("cache epoch changed over a restart")
	}
}

func TestFailedFlushIsLatchedOnOpenLUN(t *testing.T) {
	r, disk, _ := newDiskRig(t, OpenAccess)
	a := r.client(macA)
	disk.failSync.Store(true)
	wantATA(t, a.call(a.flush(0)), 0x61, 0x04)
	disk.failSync.Store(false)
	for {
		if f := a.call(a.flush(0)); !f.IsError() {
			wantATA(t, f, 0x61, 0x04)
			break
		}
	}
}

func TestWriteErrorIsADeviceFault(t *testing.T) {
	r, disk, _ := newDiskRig(t, OpenAccess)
	a := r.client(macA)
	disk.failWrite.Store(true)
	wantATA(t, a.call(a.write(0, 0, block(1, 1))), 0x61, 0x04)
	disk.failWrite.Store(false)
	wantOK(t, a.call(a.write(0, 0, block(1, 1))))
}

func TestRestartKeepsEverything(t *testing.T) {
	r := newRig(t)
	before := r.lun(ManagedAccess)
	uuid := r.shelf.UUID()
	r.admit("node-a", macA)
	a := r.client(macA)
	o := a.open(aoe.OpenSession, uuidA, 5, testGen)
	wantOK(t, a.call(a.write(tag(o.Epoch(), 1), 7, block(7, 1))))
	r.stop()
	r.config.Number = nil // the directory remembers
	r.start()
	if r.shelf.UUID() != uuid || r.shelf.Number() != testShelf {
		t.Fatalf("shelf %d %s", r.shelf.Number(), r.shelf.UUID())
	}
	after, err := r.shelf.Get(3, testGen)
	if err != nil || after.UUID != before.UUID || after.SizeBytes != before.SizeBytes || after.Created != before.Created ||
		len(after.Admitted) != 1 || after.Admitted[0].Node != "node-a" {
		t.Fatalf("%+v, %v", after, err)
	}
	a = r.client(macA)
	wantError(t, a.call(a.write(tag(o.Epoch(), 2), 7, block(8, 1))), aoe.ErrorUnavailable)
	if o := a.open(aoe.OpenSession, uuidA, 4, testGen); o.Status() != aoe.OpenStale {
		t.Fatalf("older incarnation after a restart: %v", o.Status())
	}
	next := a.open(aoe.OpenSession, uuidA, 5, testGen) // its answer may have been lost with the process
	if next.Status() != aoe.OpenDone || next.Epoch() == o.Epoch() {
		t.Fatalf("same incarnation after a restart: %v, epoch %d", next.Status(), next.Epoch())
	}
	if next.CacheEpoch() != o.CacheEpoch() {
		t.Fatal("a restart in the same boot changed the cache epoch")
	}
	got, _ := wantOK(t, a.call(a.read(tag(next.Epoch(), 1), 7, 1))).Payload(1)
	if !bytes.Equal(got, block(7, 1)) {
		t.Fatal("data lost")
	}
}

// The cache epoch tells whether acknowledged data may be gone: after a reboot, unless everything was made durable before.
func TestCacheEpochOverReboot(t *testing.T) {
	for _, test := range []struct {
		name   string
		clean  bool
		boot   string
		change bool
	}{
		{"restart", true, "boot-1", false},
		{"killed", false, "boot-1", false},
		{"stopped, rebooted", true, "boot-2", false},
		{"host lost power", false, "boot-2", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			number := uint16(testShelf)
			c := Config{Dir: t.TempDir(), Number: &number, Host: testHost{boot: "boot-1"}}
			s, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Create(context.Background(), CreateRequest{Slot: 3, Generation: testGen, SizeBytes: 4096}); err != nil {
				t.Fatal(err)
			}
			before := s.at(3).cacheEpoch
			dir := c.Dir
			if !test.clean {
				dir = copyDir(t, c.Dir)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.Dir, c.Host = dir, testHost{boot: test.boot}
			s, err = Open(c)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if changed := s.at(3).cacheEpoch != before; changed != test.change {
				t.Fatalf("cache epoch changed: %v, want %v", changed, test.change)
			}
		})
	}
}

// testHost is this machine with another boot ID or clock.
type testHost struct {
	machine
	boot  string
	clock *clock
}

func (h testHost) BootID() (string, error) {
	if h.boot == "" {
		return h.machine.BootID()
	}
	return h.boot, nil
}

func (h testHost) Now() time.Time {
	if h.clock == nil {
		return h.machine.Now()
	}
	return h.clock.now()
}

// copyDir copies a shelf's directory as SIGKILL would leave it.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestOpenRefuses(t *testing.T) {
	seven, eight, wild := uint16(7), uint16(8), uint16(0xffff)
	dir := t.TempDir()
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrInvalid) {
		t.Fatalf("new directory without a number: %v", err)
	}
	if _, err := Open(Config{Dir: dir, Number: &wild}); !errors.Is(err, ErrInvalid) {
		t.Fatalf("wildcard as number: %v", err)
	}
	s, err := Open(Config{Dir: dir, Number: &seven})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Number: &seven}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second process: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if _, err := Open(Config{Dir: dir, Number: &eight}); !errors.Is(err, ErrMismatch) {
		t.Fatalf("another number: %v", err)
	}
	rewrite(t, dir, shelfBucket, shelfKey, `{"format":2,"shelf":7}`)
	if _, err := Open(Config{Dir: dir, Number: &seven}); !errors.Is(err, ErrFormat) {
		t.Fatalf("newer format: %v", err)
	}
}

func TestOpenRefusesNewerLUN(t *testing.T) {
	r := newRig(t)
	l := r.lun(ManagedAccess)
	r.stop()
	rewrite(t, r.config.Dir, lunBucket, l.UUID, `{"format":2}`)
	if _, err := Open(r.config); !errors.Is(err, ErrFormat) {
		t.Fatal(err)
	}
}

func rewrite(t *testing.T, dir, bucket, key, value string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value)) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// What a crash interrupted is finished at the start.
func TestLeftoversAreCollected(t *testing.T) {
	r := newRig(t)
	l := r.lun(ManagedAccess)
	r.stop()
	files := filepath.Join(r.config.Dir, "luns")
	orphan := filepath.Join(files, "11111111-0000-0000-0000-000000000000.img")
	note := filepath.Join(files, "note.txt")
	for _, path := range []string{orphan, note} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("orphan: %v", err)
	}
	if _, err := os.Stat(note); err != nil {
		t.Fatalf("a file that is not ours: %v", err)
	}
	// Killed between the mark and the removal.
	if err := r.shelf.at(3).save(func(rec *lunRecord) { rec.State = lunDeleting }); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	if _, err := os.Stat(filepath.Join(files, l.UUID+".img")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("file of a deleted LUN: %v", err)
	}
	if _, err := r.shelf.Get(3, testGen); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	r.lun(ManagedAccess)
}

// A LUN whose file is gone or short takes no other down with it.
func TestDamagedLUN(t *testing.T) {
	r := newRig(t)
	l := r.lun(OpenAccess)
	ctx := context.Background()
	if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 4, Generation: otherGen, SizeBytes: 4096, Access: OpenAccess}); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := os.Truncate(filepath.Join(r.config.Dir, "luns", l.UUID+".img"), 4096); err != nil {
		t.Fatal(err)
	}
	r.start()
	a := r.client(macA)
	wantATA(t, a.call(a.read(0, 0, 1)), 0x41, 0x40)
	wantATA(t, a.call(a.write(0, 0, block(1, 1))), 0x61, 0x04)
	other := a.read(0, 0, 1)
	aoe.Frame(other).SetAddr(aoe.Addr{Shelf: testShelf, Slot: 4})
	wantOK(t, a.call(other))
	if err := r.shelf.Delete(ctx, 3, testGen); err != nil {
		t.Fatal(err)
	}
}
