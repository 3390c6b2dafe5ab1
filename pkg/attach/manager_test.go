package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

const (
	generation = "abcdefghijklmnop"
	lunBytes   = 1 << 20
)

// bench is a real target on this host, reached over its unix socket, and initiators over a fake kernel.
type bench struct {
	t      *testing.T
	run    string // sockets and records
	state  string
	shelf  string
	kernel *fakeKernel
	host   host // where it is looked up who uses a device; nobody does

	stopTarget func()
	luns       *target.Shelf
	m          *Manager
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, run: t.TempDir(), state: t.TempDir(), shelf: t.TempDir(), kernel: newFakeKernel(t), host: fakeHost(t, nil)}
	b.startTarget()
	t.Cleanup(func() { b.stopTarget() })
	b.start()
	t.Cleanup(func() { b.stop() })
	b.m.tasks.Wait() // the pass at the start is over: it finds nothing that a test makes later
	return b
}

// startTarget serves shelf 7 with the open LUNs e7.0 to e7.3.
func (b *bench) startTarget() {
	b.t.Helper()
	number := uint16(7)
	s, err := target.Open(target.Config{Dir: b.shelf, Number: &number})
	if err != nil {
		b.t.Fatal(err)
	}
	for slot := range uint8(4) {
		g := fmt.Sprintf("%s%d", generation[:15], slot)
		if _, err := s.Create(context.Background(), target.CreateRequest{Slot: slot, Generation: g, SizeBytes: lunBytes, Access: target.OpenAccess}); err != nil {
			b.t.Fatal(err)
		}
	}
	b.luns = s
	listener, err := link.ListenLocal(filepath.Join(b.run, "shelf-7.sock"))
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeLocal(ctx, listener) }()
	var once sync.Once
	b.stopTarget = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-done, s.Close()); err != nil {
				b.t.Errorf("target: %v", err)
			}
		})
	}
}

// start makes the next initiator.
func (b *bench) start() {
	b.t.Helper()
	shard, err := initiator.NewShard(initiator.ShardConfig{RunDir: b.run})
	if err != nil {
		b.t.Fatal(err)
	}
	b.m, err = NewManager(Config{RunDir: b.run, StateDir: b.state, Shards: []*initiator.Shard{shard},
		Frontends: []blockdev.Frontend{&fakeFrontend{b.kernel}}, MaxVolumes: 3, host: b.host})
	if err != nil {
		b.t.Fatal(err)
	}
	b.m.sysfs = b.kernel.sys
}

// stop ends the initiator, as SIGTERM does.
func (b *bench) stop() {
	b.t.Helper()
	if err := b.m.Close(); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

func options(slot uint8) Options {
	return Options{VolumeID: fmt.Sprintf("e7.%d", slot), Target: aoe.Addr{Shelf: 7, Slot: slot},
		Generation: fmt.Sprintf("%s%d", generation[:15], slot)}
}

func (b *bench) attach(slot uint8) Status {
	b.t.Helper()
	s, err := b.m.Attach(context.Background(), options(slot), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// queue is the queue of the process that serves the slot's device now.
func (b *bench) queue(slot uint8) *fakeQueue {
	b.t.Helper()
	o := options(slot)
	d := b.kernel.disk(deviceID(b.m.id.String(), o))
	if d == nil || d.server == nil {
		b.t.Fatalf("e7.%d has no device, or nobody serves it", slot)
	}
	return d.server
}

func (b *bench) records() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.run, "attachments"))
	if err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (b *bench) eventually(what string, check func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: did not come about: %+v", what, b.m.List())
		}
	}
}

func TestAttachUseDetach(t *testing.T) {
	b := newBench(t)
	s := b.attach(1)
	if s.State != "live" || s.SizeBytes != lunBytes || s.Frontend != "nbd" || !s.Info.Flush {
		t.Errorf("attached as %+v", s)
	}
	data := bytes.Repeat([]byte("aoe!"), 16<<10)
	q := b.queue(1)
	if errno := q.io(t, blockdev.OpWrite, 4096, data); errno != 0 {
		t.Errorf("write: %v", errno)
	}
	if errno := q.io(t, blockdev.OpFlush, 0, nil); errno != 0 {
		t.Errorf("flush: %v", errno)
	}
	got := make([]byte, len(data))
	if errno := q.io(t, blockdev.OpRead, 4096, got); errno != 0 || !bytes.Equal(got, data) {
		t.Errorf("read: %v, same data: %v", errno, bytes.Equal(got, data))
	}
	if errno := q.io(t, blockdev.OpRead, lunBytes, make([]byte, 512)); errno != syscall.EIO {
		t.Errorf("read behind the end: %v", errno)
	}
	if names := b.records(); len(names) != 1 {
		t.Errorf("records: %v", names)
	}
	for range 2 {
		if err := b.m.Detach(context.Background(), "e7.1", false, 0); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	if names := b.records(); len(names) != 0 || len(b.m.List()) != 0 {
		t.Errorf("left after detach: %v, %v", names, b.m.List())
	}
	if s := b.attach(1); s.State != "live" {
		t.Errorf("attached again as %+v", s)
	}
}

func TestAttachAgain(t *testing.T) {
	b := newBench(t)
	first := b.attach(1)
	if again := b.attach(1); again.Device != first.Device {
		t.Errorf("attached again as %s, not %s", again.Device, first.Device)
	}
	other := options(2)
	other.VolumeID = "e7.1"
	readOnly := options(1)
	readOnly.ReadOnly = true
	stranger := options(1)
	stranger.VolumeID = "somebody"
	for name, tt := range map[string]struct {
		opts Options
		want error
	}{
		"another target":            {other, ErrConflict},
		"read-only":                 {readOnly, ErrConflict},
		"same target, other volume": {stranger, initiator.ErrExists},
	} {
		if _, err := b.m.Attach(context.Background(), tt.opts, 0); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if list := b.m.List(); len(list) != 1 || list[0].State != "live" {
		t.Errorf("after refusals: %+v", list)
	}
}

func TestAttachRefusals(t *testing.T) {
	b := newBench(t)
	with := func(change func(*Options)) Options {
		o := options(1)
		change(&o)
		return o
	}
	tests := []struct {
		name string
		opts Options
		want error
	}{
		{"no volume", with(func(o *Options) { o.VolumeID = "" }), ErrInvalid},
		{"volume ID too long", with(func(o *Options) { o.VolumeID = strings.Repeat("x", maxVolumeID+1) }), ErrInvalid},
		{"wild address", with(func(o *Options) { o.Target = aoe.Any }), ErrInvalid},
		{"negative dead time", with(func(o *Options) { o.DeadTime = -1 }), ErrInvalid},
		{"unknown front end", with(func(o *Options) { o.Frontend = "scsi" }), ErrInvalid},
		{"front end not here", with(func(o *Options) { o.Frontend = "ublk" }), ErrNoFrontend},
		{"interface not ours", with(func(o *Options) { o.Interfaces = []string{"eth9"} }), ErrInvalid},
		{"nobody there", with(func(o *Options) { o.Target.Slot = 99 }), initiator.ErrNoAnswer},
		{"another volume", with(func(o *Options) { o.Generation = "zzzzzzzzzzzzzzzz" }), initiator.ErrIdentity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := b.m.Attach(context.Background(), tt.opts, 700*time.Millisecond); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if len(b.m.List()) != 0 || len(b.records()) != 0 {
				t.Errorf("left: %+v, %v", b.m.List(), b.records())
			}
		})
	}
	if s := b.attach(1); s.State != "live" {
		t.Errorf("after refusals: %+v", s)
	}
}

func TestTooMany(t *testing.T) {
	b := newBench(t)
	for slot := range uint8(3) {
		b.attach(slot)
	}
	if _, err := b.m.Attach(context.Background(), options(3), 0); !errors.Is(err, ErrTooMany) {
		t.Errorf("fourth: %v", err)
	}
}

func TestFrontendFails(t *testing.T) {
	b := newBench(t)
	b.kernel.set(func() { b.kernel.probe = fmt.Errorf("%w: no module", blockdev.ErrUnsupported) })
	if _, err := b.m.Attach(context.Background(), options(1), 0); !errors.Is(err, ErrNoFrontend) || !strings.Contains(err.Error(), "no module") {
		t.Errorf("without a front end: %v", err)
	}
	b.kernel.set(func() { b.kernel.probe, b.kernel.fail = nil, errFake })
	if _, err := b.m.Attach(context.Background(), options(1), 0); !errors.Is(err, errFake) {
		t.Errorf("device that does not start: %v", err)
	}
	if len(b.m.List()) != 0 || len(b.records()) != 0 {
		t.Errorf("left: %+v, %v", b.m.List(), b.records())
	}
	b.kernel.set(func() { b.kernel.fail = nil })
	b.attach(1)
}

// TestVolumesDoNotWaitForEachOther: one attach that hangs leaves the others alone; its own volume's calls wait.
func TestVolumesDoNotWaitForEachOther(t *testing.T) {
	b := newBench(t)
	hangs := options(0)
	hangs.Target.Slot = 99
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, err := b.m.Attach(ctx, hangs, time.Minute)
		done <- err
	}()
	b.eventually("the attach is under way", func() bool { return len(b.m.List()) == 1 })
	b.attach(1)
	short, cancelShort := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancelShort()
	if err := b.m.Detach(short, hangs.VolumeID, false, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("detach beside an attach of the same volume: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("attach that was called off: %v", err)
	}
	if list := b.m.List(); len(list) != 1 {
		t.Errorf("left: %+v", list)
	}
}

func TestDetachWithIOPending(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	q := b.queue(1)
	b.stopTarget()
	pending := q.do(blockdev.OpWrite, 0, make([]byte, 4096))
	disk := b.kernel.disk(deviceID(b.m.id.String(), options(1)))
	b.kernel.set(func() { disk.busy = true })

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := b.m.Detach(ctx, "e7.1", false, time.Minute); !errors.Is(err, ErrPending) {
		t.Fatalf("detach while I/O is pending: %v", err)
	}
	if s, err := b.m.Status("e7.1"); err != nil || s.State != "detaching" || !strings.Contains(s.Message, "pending") {
		t.Errorf("status: %+v, %v", s, err)
	}
	if s := b.attach(1); s.State == "detaching" {
		t.Errorf("attach did not take the detach back: %+v", s)
	}
	if err := b.m.Detach(context.Background(), "e7.1", false, 50*time.Millisecond); err != nil {
		t.Errorf("detach after its timeout: %v", err)
	}
	if errno := await(t, pending); errno != syscall.EIO {
		t.Errorf("request that was given up: %v", errno)
	}
	if len(b.m.List()) != 0 || len(b.records()) != 0 {
		t.Errorf("left: %+v, %v", b.m.List(), b.records())
	}
	if what := b.m.GivenUp("e7.1"); !strings.Contains(what, "no answer for 50ms") || !strings.Contains(what, "e7.1") {
		t.Errorf("given up: %q", what)
	}
	b.startTarget()
	b.attach(1)
	if what := b.m.GivenUp("e7.1"); what != "" {
		t.Errorf("attached again, still remembered: %q", what)
	}
	if err := b.m.Detach(context.Background(), "e7.1", false, 0); err != nil || b.m.GivenUp("e7.1") != "" {
		t.Errorf("a detach that lost nothing: %v, %q", err, b.m.GivenUp("e7.1"))
	}
	b.attach(1)
	if err := b.m.Detach(context.Background(), "e7.1", true, 0); err != nil || b.m.GivenUp("e7.1") != "" {
		t.Errorf("a forced detach that lost nothing: %v, %q", err, b.m.GivenUp("e7.1"))
	}
}

func TestForcedDetach(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	q := b.queue(1)
	b.stopTarget()
	pending := q.do(blockdev.OpRead, 0, make([]byte, 4096))
	if err := b.m.Detach(context.Background(), "e7.1", true, 0); err != nil {
		t.Errorf("forced detach: %v", err)
	}
	if what := b.m.GivenUp("e7.1"); !strings.Contains(what, "forced") {
		t.Errorf("given up: %q", what)
	}
	if errno := await(t, pending); errno != syscall.EIO {
		t.Errorf("request that was given up: %v", errno)
	}
}

// TestRestart: the next initiator takes over what the one before left, and requests go on with it.
func TestRestart(t *testing.T) {
	b := newBench(t)
	before := b.attach(1)
	b.attach(2)
	data := bytes.Repeat([]byte("here"), 1<<10)
	if errno := b.queue(1).io(t, blockdev.OpWrite, 0, data); errno != 0 {
		t.Fatal(errno)
	}
	incarnation := b.m.get("e7.1").target().State().Incarnation
	b.stop()
	b.kernel.set(func() {
		b.kernel.notYet = 2
		delete(b.kernel.devices, 1) // e7.2's: somebody removed it meanwhile
	})
	b.start()
	b.eventually("takeover", func() bool {
		s, err := b.m.Status("e7.1")
		return err == nil && s.State == "live"
	})
	if s, _ := b.m.Status("e7.1"); s.Device != before.Device || s.FrontendReason == "" {
		t.Errorf("taken over as %+v", s)
	}
	if list := b.m.List(); len(list) != 1 {
		t.Errorf("a device that is gone came back: %+v", list)
	}
	if got := b.m.get("e7.1").target().State().Incarnation; got <= incarnation {
		t.Errorf("incarnation %d is not greater than %d", got, incarnation)
	}
	got := make([]byte, len(data))
	if errno := b.queue(1).io(t, blockdev.OpRead, 0, got); errno != 0 || !bytes.Equal(got, data) {
		t.Errorf("read after the takeover: %v", errno)
	}
	if err := b.m.Detach(context.Background(), "e7.1", false, 0); err != nil {
		t.Error(err)
	}
	if names := b.records(); len(names) != 0 {
		t.Errorf("records left: %v", names)
	}
}

// TestRestartWithoutTarget: until the target is back the device waits, and can be forced away.
func TestRestartWithoutTarget(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.attach(2)
	b.stop()
	b.stopTarget()
	b.start()
	if s, err := b.m.Status("e7.1"); err != nil || s.State != "attaching" || s.Message == "" || s.SizeBytes != lunBytes {
		t.Errorf("status while the target is away: %+v, %v", s, err)
	}
	if err := b.m.Detach(context.Background(), "e7.2", false, 0); !errors.Is(err, ErrPending) {
		t.Errorf("detach of a device that nobody serves: %v", err)
	}
	if err := b.m.Detach(context.Background(), "e7.2", true, 0); err != nil {
		t.Errorf("forced: %v", err)
	}
	if b.kernel.disk(deviceID(b.m.id.String(), options(2))) != nil {
		t.Error("the device is still there")
	}
	b.startTarget()
	b.eventually("takeover", func() bool {
		s, err := b.m.Status("e7.1")
		return err == nil && s.State == "live"
	})
	b.queue(1).io(t, blockdev.OpRead, 0, make([]byte, 512))
}

// TestDetachJudgesAnew: a flush that began before the volume was attached again says nothing about now.
func TestDetachJudgesAnew(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	a := b.m.get("e7.1")
	old := &flushing{done: make(chan struct{})}
	a.mu.Lock()
	a.flushing = old
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := b.m.Detach(ctx, "e7.1", false, time.Minute); !errors.Is(err, ErrPending) {
		t.Fatalf("detach while the flush hangs: %v, want ErrPending", err)
	}
	b.attach(1)
	old.err = unix.EBUSY
	close(old.done)
	if err := b.m.Detach(context.Background(), "e7.1", false, time.Minute); err != nil {
		t.Fatalf("detach judged by an old flush: %v", err)
	}
}

// TestDisconnectedByOthers: a device that somebody else ended is told of, and the next Attach makes another.
func TestDisconnectedByOthers(t *testing.T) {
	b := newBench(t)
	before := b.attach(1)
	b.queue(1).end()
	b.kernel.set(func() { clear(b.kernel.devices) })
	b.eventually("it is noticed", func() bool {
		s, err := b.m.Status("e7.1")
		return err == nil && s.State == "failed" && strings.Contains(s.Message, "somebody else")
	})
	after := b.attach(1)
	if after.State != "live" || after.Device == before.Device {
		t.Errorf("attached again as %+v", after)
	}
	if errno := b.queue(1).io(t, blockdev.OpRead, 0, make([]byte, 512)); errno != 0 {
		t.Errorf("read: %v", errno)
	}
}

func TestRecordsOfOtherTimes(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.attach(2)
	b.stop()
	records := records{dir: filepath.Join(b.run, "attachments")}
	all, _, err := records.load()
	if err != nil || len(all) != 2 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	rebooted, cutOff := all[0], all[1]
	if rebooted.Options.VolumeID != "e7.1" {
		rebooted, cutOff = cutOff, rebooted
	}
	rebooted.BootID = "another"
	cutOff.Started = false
	for _, rec := range all {
		if err := records.write(rec); err != nil {
			t.Fatal(err)
		}
	}
	newer := filepath.Join(records.dir, "newer.record")
	if err := os.WriteFile(newer, fmt.Appendf(nil, recordHeader+"{}", recordFormat+1, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(records.dir, "cut.record.new"), []byte(`{"for`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.eventually("both are gone", func() bool { return len(b.m.List()) == 0 })
	b.eventually("their records, too", func() bool {
		left, bad, err := records.load()
		return err == nil && len(left) == 0 && len(bad) == 1 // the newer one is refused, and left alone
	})
	if _, err := os.Stat(newer); err != nil {
		t.Errorf("record of a newer version: %v", err)
	}
	if b.kernel.disk(deviceID(b.m.id.String(), options(2))) != nil {
		t.Error("a device that nobody was told of is still there")
	}
}

// TestAnEndedDeviceIsNotWaitedFor: the device of an initiator that died in the midst of a detach is cleared away, and the next detach has
// nothing to wait for, whether that is seen at the start or later.
func TestAnEndedDeviceIsNotWaitedFor(t *testing.T) {
	for _, later := range []bool{false, true} {
		b := newBench(t)
		b.attach(1)
		b.stop()
		disk := b.kernel.disk(deviceID(b.m.id.String(), options(1)))
		end := func() { b.kernel.set(func() { disk.ended = true }) }
		if later {
			b.kernel.set(func() { b.kernel.notYet = 1 << 30 })
		} else {
			end()
		}
		b.start()
		if later {
			b.eventually("it is tried", func() bool { return len(b.m.List()) == 1 })
			end()
		}
		b.eventually("it is gone", func() bool { return len(b.m.List()) == 0 })
		if err := b.m.Detach(context.Background(), "e7.1", false, time.Hour); err != nil {
			t.Errorf("detach: %v", err)
		}
		if b.kernel.disk(disk.id) != nil {
			t.Error("what was left of the device is still there")
		}
		left, bad, err := records{dir: filepath.Join(b.run, "attachments")}.load()
		if err != nil || len(left)+len(bad) != 0 {
			t.Errorf("records: %v, %v, %v", left, bad, err)
		}
		b.kernel.set(func() { b.kernel.notYet = 0 })
	}
}

// TestADamagedRecordIsNeverGuessed: its volume is neither attached a second time nor said to be gone, and its device stays.
func TestADamagedRecordIsNeverGuessed(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.stop()
	path := filepath.Join(b.run, "attachments", "e7%2E1.record")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)-2], 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	_, attachErr := b.m.Attach(context.Background(), options(1), 0)
	for what, err := range map[string]error{
		"attach": attachErr, "detach": b.m.Detach(context.Background(), "e7.1", false, 0),
		"forced detach": b.m.Detach(context.Background(), "e7.1", true, 0),
	} {
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b.kernel.disk(deviceID(b.m.id.String(), options(1))) == nil {
		t.Error("the device is gone")
	}
	if err := b.m.Detach(context.Background(), "e7.2", false, 0); err != nil {
		t.Errorf("detach of another volume: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.attach(1) // whoever removed the record answers for it
}
