package target

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// newDiskRig has a managed LUN on a disk that can hang and fail, and a clock that stands still.
func newDiskRig(t *testing.T, access Access) (*rig, *disk, *clock) {
	t.Helper()
	number := uint16(testShelf)
	c := &clock{}
	c.at.Store(time.Now().UnixNano())
	disks := make(chan *disk, 100)
	r := newRigAt(t, Config{Dir: t.TempDir(), Number: &number, Host: testHost{clock: c}, wrap: func(b File) File {
		d := newDisk(b)
		disks <- d
		return d
	}})
	r.lun(access)
	return r, <-disks, c
}

// clock stands still until told.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

func tag(epoch uint8, counter uint32) uint32 { return aoe.MakeTag(1, epoch, counter) }

func TestManagedNeedsASession(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	identify := aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}
	wantOK(t, a.call(a.ata(0, identify, nil)))
	wantError(t, a.call(a.read(0, 0, 1)), aoe.ErrorUnavailable)
	wantError(t, a.call(a.write(tag(5, 1), 0, block(1, 1))), aoe.ErrorUnavailable)
	epoch := a.session(uuidA, 1)
	wantOK(t, a.call(a.write(tag(epoch, 1), 0, block(1, 1))))
	wantOK(t, a.call(a.read(tag(epoch, 2), 0, 1)))
	wantOK(t, a.call(a.flush(tag(epoch, 3))))
	// The session is the only way in: neither another epoch nor a tag of the kernel's driver.
	wantError(t, a.call(a.write(tag(epoch+1, 4), 0, block(2, 1))), aoe.ErrorUnavailable)
	wantError(t, a.call(a.write(0x1234, 0, block(2, 1))), aoe.ErrorUnavailable)
	got, _ := wantOK(t, a.call(a.read(tag(epoch, 5), 0, 1))).Payload(1)
	if !bytes.Equal(got, block(1, 1)) {
		t.Fatal("a write outside the session took effect")
	}
}

func TestStrangersHearNothing(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	a, b := r.client(macA), r.client(macB)
	epoch := a.session(uuidA, 1)
	for name, frame := range map[string][]byte{
		"read":          b.read(0, 0, 1),
		"write":         b.write(0, 0, block(9, 1)),
		"in a session":  b.write(tag(epoch, 50), 0, block(9, 1)),
		"identify":      b.ata(0, aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}, nil),
		"config":        b.config(aoe.ConfigRead, ""),
		"force set":     b.config(aoe.ConfigForceSet, "mine"),
		"mask":          b.mask(aoe.MaskEdit, aoe.Directive{Command: aoe.DirectiveAdd, MAC: macB}),
		"reservation":   b.reserve(aoe.ReserveForceSet, macB),
		"other command": func() []byte { f := b.config(aoe.ConfigRead, ""); f[19] = 0x77; return f }(),
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.silent(frame)
		})
	}
	if o := b.open(aoe.OpenSession, uuidB, 1, testGen); o.Status() != aoe.OpenNotAdmitted || o.CacheEpoch() != 0 {
		t.Fatalf("OPEN of a stranger: %v", o.Status())
	}
	got, _ := wantOK(t, a.call(a.read(tag(epoch, 60), 0, 1))).Payload(1)
	if !bytes.Equal(got, block(0, 1)) {
		t.Fatal("a stranger wrote")
	}
}

func TestOpenAnswers(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	first := a.session(uuidA, 10)
	again := a.open(aoe.OpenSession, uuidA, 10, testGen)
	if again.Status() != aoe.OpenDone || again.Epoch() != first {
		t.Fatalf("retransmitted OPEN: %v, epoch %d, want %d", again.Status(), again.Epoch(), first)
	}
	if o := a.open(aoe.OpenSession, uuidA, 9, testGen); o.Status() != aoe.OpenStale {
		t.Fatalf("older incarnation: %v", o.Status())
	}
	if o := a.open(aoe.OpenSession, uuidA, 11, otherGen); o.Status() != aoe.OpenOtherGeneration {
		t.Fatalf("other generation: %v", o.Status())
	}
	second := a.session(uuidA, 11)
	if second == first {
		t.Fatal("epoch reused at once")
	}
	wantError(t, a.call(a.write(tag(first, 1), 0, block(1, 1))), aoe.ErrorUnavailable)
	wantOK(t, a.call(a.write(tag(second, 1), 0, block(1, 1))))
	if o := a.open(aoe.CloseSession, uuidA, 11, testGen); o.Status() != aoe.OpenDone {
		t.Fatalf("close: %v", o.Status())
	}
	wantError(t, a.call(a.write(tag(second, 2), 0, block(1, 1))), aoe.ErrorUnavailable)
	if o := a.open(aoe.OpenSession, uuidA, 11, testGen); o.Status() != aoe.OpenStale {
		t.Fatalf("late copy of a closed session's OPEN: %v", o.Status())
	}
	a.session(uuidA, 12)
}

func TestOpenOfAnOpenLUN(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	if o := a.open(aoe.OpenSession, uuidA, 1, testGen); o.Status() != aoe.OpenNoSessions || o.CacheEpoch() == 0 {
		t.Fatalf("OPEN: %v", o.Status())
	}
}

func TestEpochsRunOutAndComeBack(t *testing.T) {
	r, _, clock := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	seen := make(map[uint8]bool)
	for i := range uint64(aoe.MaxEpoch) {
		epoch := a.session(uuidA, i+1)
		if seen[epoch] {
			t.Fatalf("epoch %d twice within the lifetime of a duplicate", epoch)
		}
		seen[epoch] = true
	}
	if o := a.open(aoe.OpenSession, uuidA, 100, testGen); o.Status() != aoe.OpenNoEpoch {
		t.Fatalf("64th OPEN within a second: %v", o.Status())
	}
	clock.advance(duplicateLifetime)
	a.session(uuidA, 100)
}

func TestReplaysAreAnsweredNotExecuted(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA, macB)
	a, b := r.client(macA), r.client(macB)
	epoch := a.session(uuidA, 1)
	old := a.write(tag(epoch, 1), 0, block(1, 1))
	wantOK(t, a.call(old))
	wantOK(t, a.call(a.write(tag(epoch, 2), 0, block(2, 1))))
	wantOK(t, a.call(old))
	// The same session over another path.
	onB := bytes.Clone(old)
	aoe.Frame(onB).SetSrc(macB)
	wantOK(t, b.call(onB))
	if n := disk.writes.Load(); n != 2 {
		t.Fatalf("%d writes executed, want 2", n)
	}
	got, _ := wantOK(t, a.call(a.read(tag(epoch, 3), 0, 1))).Payload(1)
	if !bytes.Equal(got, block(2, 1)) {
		t.Fatal("an old write came over a newer one")
	}
	bad := a.write(tag(epoch, 4), lunSectors, block(1, 1))
	wantATA(t, a.call(bad), 0x41, 0x10)
	wantATA(t, a.call(bad), 0x41, 0x10)
	wantOK(t, a.call(a.flush(tag(epoch, 5))))
	wantOK(t, a.call(a.flush(tag(epoch, 5))))
	if n := disk.syncs.Load(); n != 1 {
		t.Fatalf("%d syncs, want 1", n)
	}
	// Older than the window.
	wantOK(t, a.call(a.read(tag(epoch, 10+replayWindow), 0, 1)))
	a.silent(a.write(tag(epoch, 1), 0, block(7, 1)))
	stats := r.shelf.Stats()
	if stats.Replayed != 4 || stats.Stale != 1 {
		t.Fatalf("%d replayed, %d stale", stats.Replayed, stats.Stale)
	}
}

func TestRunningCopyIsNotAnsweredTwice(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	release := disk.block()
	defer release()
	frame := a.write(tag(epoch, 1), 0, block(1, 1))
	a.send(frame)
	<-disk.entered
	a.silent(frame)
	release()
	wantOK(t, a.answer(tag(epoch, 1)))
	a.fence() // no second answer
	if n := disk.writes.Load(); n != 1 {
		t.Fatalf("%d writes", n)
	}
}

func TestOpenWaitsForOlderWrites(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	release := disk.block()
	defer release()
	// More than there are workers: the rest is queued and must be dropped.
	for i := range uint32(lunWorkers + 4) {
		a.send(a.write(tag(epoch, i), uint64(i), block(1, 1)))
	}
	for range lunWorkers {
		<-disk.entered
	}
	a.fence()
	if o := a.open(aoe.OpenSession, uuidA, 2, testGen); o.Status() != aoe.OpenBusy {
		t.Fatalf("OPEN while writes hang: %v", o.Status())
	}
	release()
	var next uint8
	for next == 0 { // answers to the running writes come in between
		a.send(a.openFrame(aoe.OpenSession, uuidA, 2, testGen))
		for {
			f := a.receive()
			if f.Command() == aoe.CommandATA {
				continue
			}
			if o, err := f.Open(); err == nil && o.Status() == aoe.OpenDone {
				next = o.Epoch()
			}
			break
		}
	}
	if n := disk.writes.Load(); n != lunWorkers {
		t.Fatalf("%d writes executed, want the %d that ran", n, lunWorkers)
	}
	wantOK(t, a.call(a.write(tag(next, 1), 0, block(2, 1))))
}

// A queued write whose address was taken off meanwhile is not lost for its session: a copy from another address is executed.
func TestDroppedWriteCanBeSentAgain(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA, macB)
	a, b := r.client(macA), r.client(macB)
	epoch := a.session(uuidA, 1)
	release := disk.block()
	defer release()
	for i := range uint32(lunWorkers) {
		a.send(a.write(tag(epoch, i), uint64(i), block(1, 1)))
	}
	for range lunWorkers {
		<-disk.entered
	}
	b.silent(b.write(tag(epoch, 100), 50, block(5, 1)))
	admitted := make(chan struct{})
	go func() {
		defer close(admitted)
		r.admit("node-a", macA)
	}()
	l := r.shelf.at(3)
	for off := false; !off; {
		l.mu.Lock()
		off = l.node(macB) == ""
		l.mu.Unlock()
	}
	release()
	<-admitted
	for range lunWorkers {
		wantOK(t, a.next())
	}
	wantOK(t, a.call(a.write(tag(epoch, 100), 50, block(5, 1))))
	if n := disk.writes.Load(); n != lunWorkers+1 {
		t.Fatalf("%d writes executed", n)
	}
}

// TestReusedSlotHasOtherEpochs: a frame to a LUN that was deleted may arrive when the next one in its slot has a session of the same
// node. Its tag must be no session's then.
func TestReusedSlotHasOtherEpochs(t *testing.T) {
	r, _, clock := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	late := a.write(tag(a.session(uuidA, 1), 1), 0, block(9, 1))
	ctx := context.Background()
	if _, err := r.shelf.Expel(ctx, 3, testGen, "node-a"); err != nil {
		t.Fatal(err)
	}
	if err := r.shelf.Delete(ctx, 3, testGen); err != nil {
		t.Fatal(err)
	}
	for restarted := range 2 {
		if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 3, Generation: otherGen, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.shelf.Admit(ctx, 3, otherGen, Admission{Node: "node-a", MACs: []aoe.MAC{macA}}); err != nil {
			t.Fatal(err)
		}
		if o := a.open(aoe.OpenSession, uuidA, 2, otherGen); o.Status() != aoe.OpenNoEpoch {
			t.Fatalf("restarted %d: OPEN at once: %v, epoch %d", restarted, o.Status(), o.Epoch())
		}
		wantError(t, a.call(late), aoe.ErrorUnavailable)
		if restarted == 0 {
			if _, err := r.shelf.Expel(ctx, 3, otherGen, "node-a"); err != nil {
				t.Fatal(err)
			}
			if err := r.shelf.Delete(ctx, 3, otherGen); err != nil {
				t.Fatal(err)
			}
			r.stop()
			r.start()
			a = r.client(macA)
		}
	}
	clock.advance(duplicateLifetime)
	if o := a.open(aoe.OpenSession, uuidA, 2, otherGen); o.Status() != aoe.OpenDone {
		t.Fatalf("OPEN later: %v", o.Status())
	}
}
