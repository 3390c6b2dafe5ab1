//go:build vm

// Package blockdev runs the front ends against a real kernel, with memory as the disk.
package blockdev

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev/nbd"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev/ublk"
)

const size = 64 << 20

func params(id string) blockdev.Params {
	return blockdev.Params{ID: id, SizeBytes: size, LogicalBlock: 512, PhysicalBlock: 512, Flush: true, FUA: true, Trim: true,
		DeadTimeout: time.Minute, ReplayAfter: time.Second}
}

// each runs a test with every front end; fresh returns a new one, as another process would have it.
func each(t *testing.T, test func(t *testing.T, fresh func() blockdev.Frontend)) {
	for _, fresh := range []func() blockdev.Frontend{
		func() blockdev.Frontend { return nbd.New() },
		func() blockdev.Frontend { return ublk.New() },
	} {
		t.Run(fresh().Name(), func(t *testing.T) { test(t, fresh) })
	}
}

// start makes a device and its server; both end with the test.
func start(t *testing.T, f blockdev.Frontend, d *disk, p blockdev.Params) (blockdev.Device, *server) {
	t.Helper()
	dev, err := f.Create(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, d, dev.Queue())
	if err := dev.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
		s.stop()
		if err := dev.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return dev, s
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func attribute(t *testing.T, dev blockdev.Device, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"/sys/block", filepath.Base(dev.Path())}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestProbe(t *testing.T) {
	each(t, testProbe)
}

func testProbe(t *testing.T, fresh func() blockdev.Frontend) {
	if err := fresh().Probe(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestStartReadsNothing: a start that waits for an answer of ours would be stuck, and everything after it, if we were killed just then.
func TestStartReadsNothing(t *testing.T) {
	each(t, testStartReadsNothing)
}

func testStartReadsNothing(t *testing.T, fresh func() blockdev.Frontend) {
	d := &disk{mem: make([]byte, size), mute: true}
	dev, _ := start(t, fresh(), d, params("mute@1"))
	if idle, err := dev.Idle(); err != nil || !idle {
		t.Errorf("requests are out after the start: idle %v, %v", idle, err)
	}
}

func TestVerifiedLoad(t *testing.T) {
	each(t, testVerifiedLoad)
}

func testVerifiedLoad(t *testing.T, fresh func() blockdev.Frontend) {
	d := &disk{mem: make([]byte, size)}
	dev, _ := start(t, fresh(), d, params("load@1"))
	wanted := map[string]string{"queue/io_timeout": "1000", "queue/max_sectors_kb": "256", "queue/logical_block_size": "512",
		"queue/physical_block_size": "512", "queue/rotational": "0", "queue/write_cache": "write back", "queue/fua": "1",
		"size": fmt.Sprint(size / 512)}
	if dev.State().Frontend == "nbd" {
		wanted["backend"] = "load@1"
	} else {
		wanted["queue/scheduler"], wanted["queue/nr_requests"] = "[none] mq-deadline", "128"
	}
	for attr, want := range wanted {
		if got := attribute(t, dev, attr); got != want {
			t.Errorf("%s is %q, want %q", attr, got, want)
		}
	}
	t.Log(run(t, "fio", "--name=nbd", "--filename="+dev.Path(), "--ioengine=libaio", "--direct=1", "--rw=randwrite",
		"--bsrange=512-1m", "--blockalign=512", "--iodepth=32", "--size=48m", "--verify=crc32c", "--verify_backlog=128",
		"--verify_fatal=1", "--fsync=32", "--minimal"))
	if d.flushes == 0 {
		t.Error("no flush arrived")
	}
	if idle, err := dev.Idle(); err != nil || !idle {
		t.Errorf("Idle after fio: %v, %v", idle, err)
	}
}

func TestFileSystem(t *testing.T) {
	each(t, testFileSystem)
}

func testFileSystem(t *testing.T, fresh func() blockdev.Frontend) {
	d := &disk{mem: make([]byte, size)}
	dev, _ := start(t, fresh(), d, params("fs@1"))
	run(t, "mkfs.ext4", "-q", dev.Path())
	dir := t.TempDir()
	run(t, "mount", "-o", "discard", dev.Path(), dir)
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data) // never fails
	file := filepath.Join(dir, "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", dir)
	run(t, "mount", "-o", "discard", dev.Path(), dir)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
		t.Errorf("file differs after a remount: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Error(err)
	}
	run(t, "umount", dir)
	run(t, "e2fsck", "-fn", dev.Path())
	if d.trims == 0 {
		t.Error("no trim arrived")
	}
}

func TestReadOnly(t *testing.T) {
	each(t, testReadOnly)
}

func testReadOnly(t *testing.T, fresh func() blockdev.Frontend) {
	p := params("ro@1")
	p.ReadOnly = true
	dev, _ := start(t, fresh(), &disk{mem: make([]byte, size)}, p)
	if got := attribute(t, dev, "ro"); got != "1" {
		t.Errorf("ro is %q", got)
	}
	f, err := os.OpenFile(dev.Path(), os.O_RDWR, 0)
	if err != nil {
		return // newer kernels refuse here already
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 512)); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v, want EPERM", err)
	}
}

func TestResizeWhileOpen(t *testing.T) {
	each(t, testResizeWhileOpen)
}

func testResizeWhileOpen(t *testing.T, fresh func() blockdev.Frontend) {
	d := &disk{mem: make([]byte, 2*size)}
	dev, _ := start(t, fresh(), d, params("grow@1"))
	f, err := os.OpenFile(dev.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	features, err := fresh().Features(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	err = dev.Resize(context.Background(), 2*size)
	if !features.LiveResize {
		if !errors.Is(err, blockdev.ErrCannotGrow) {
			t.Errorf("growth on a kernel that cannot: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if end, err := f.Seek(0, 2); err != nil || end != 2*size {
		t.Errorf("size after growth: %d, %v", end, err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), size+4096); err != nil {
		t.Error(err)
	}
}

func TestNumbersAreSharedWithOthers(t *testing.T) {
	each(t, testNumbersAreSharedWithOthers)
}

func testNumbersAreSharedWithOthers(t *testing.T, fresh func() blockdev.Frontend) {
	one, two := fresh(), fresh() // two processes, as far as they know
	a, err := one.Create(context.Background(), params("a@1"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := one.Create(context.Background(), params("b@1"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Path() == b.Path() {
		t.Fatalf("two devices with the number of %s", a.Path())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wanted := a.State().Number
	other, _ := start(t, two, &disk{mem: make([]byte, size)}, params("other@1"))
	if other.State().Number != wanted {
		t.Fatalf("the other took %d, not %d: the test is wrong", other.State().Number, wanted)
	}
	s := serve(t, &disk{mem: make([]byte, size)}, a.Queue())
	if err := a.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a.State().Number == wanted {
		t.Error("State does not tell the number in use")
	}
	if exists, err := fresh().Exists(a.State()); err != nil || !exists {
		t.Errorf("Exists: %v, %v", exists, err)
	}
	if err := a.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStopWithRequestsOutstanding(t *testing.T) {
	each(t, testStopWithRequestsOutstanding)
}

func testStopWithRequestsOutstanding(t *testing.T, fresh func() blockdev.Frontend) {
	f := fresh()
	d := &disk{mem: make([]byte, size)}
	dev, err := f.Create(context.Background(), params("stop@1"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, d, dev.Queue())
	if err := dev.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.setMute(true)
	file, err := os.OpenFile(dev.Path(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	// More than the socket and the queue can hold, so that the kernel is stuck handing requests over.
	result := make(chan error, 64)
	for i := range 64 {
		go func() {
			buf, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err == nil {
				_, err = file.WriteAt(buf, int64(i)*256<<10)
			}
			result <- err
		}()
	}
	// All of them: a write that begins after the device is gone ends with ENOSPC, its size being 0 by then.
	deadline := time.Now().Add(20 * time.Second)
	for n := 0; n < 64; n = writesWaiting(t) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 64 writes wait for the device", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if idle, err := dev.Idle(); idle || err != nil {
		t.Fatalf("no request outstanding: %v, %v", idle, err)
	}
	begin := time.Now()
	d.fail() // the kernel may wait for what it handed out
	s.nudge()
	if err := dev.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop took %v", time.Since(begin))
	for range 64 {
		if err := <-result; !errors.Is(err, unix.EIO) {
			t.Errorf("pending write ended with %v, want EIO", err)
		}
	}
	_ = file.Close() // its error was seen above
	s.stop()
	if err := errors.Join(dev.Stop(context.Background()), dev.Close(), dev.Close()); err != nil {
		t.Errorf("second Stop, Close: %v", err)
	}
	if exists, err := f.Exists(dev.State()); err != nil || exists {
		t.Errorf("Exists after Stop: %v, %v", exists, err)
	}
}

// writesWaiting counts the threads of this process that wait inside pwrite(2) (/proc/PID/syscall of proc(5)).
func writesWaiting(t *testing.T) int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/[0-9]*/syscall")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, task := range tasks {
		// One that has ended meanwhile cannot be read, and does not wait.
		if data, err := os.ReadFile(task); err == nil && bytes.HasPrefix(data, fmt.Appendf(nil, "%d ", unix.SYS_PWRITE64)) {
			n++
		}
	}
	return n
}

// TestRecover lets the server die with requests taken and unanswered; a new one must get all of them.
func TestRecover(t *testing.T) {
	each(t, testRecover)
}

func testRecover(t *testing.T, fresh func() blockdev.Frontend) {
	f := fresh()
	d := &disk{mem: make([]byte, size)}
	dev, err := f.Create(context.Background(), params("recover@1"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, d, dev.Queue())
	if err := dev.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.setMute(true)
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data) // never fails
	file, err := os.OpenFile(dev.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	written := make(chan error, 1)
	go func() {
		_, err := file.WriteAt(data, 1<<20)
		written <- errors.Join(err, file.Sync())
	}()
	time.Sleep(500 * time.Millisecond)
	s.stop()
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}

	d.setMute(false)
	f = fresh()
	state := dev.State()
	if exists, err := f.Exists(state); err != nil || !exists {
		t.Fatalf("Exists: %v, %v", exists, err)
	}
	again, s := recovered(t, f, d, state)
	select {
	case err := <-written:
		if err != nil {
			t.Errorf("write over the death of the server: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the write does not come back")
	}
	if !bytes.Equal(d.mem[1<<20:][:len(data)], data) {
		t.Error("data differ")
	}
	if err := again.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	s.stop()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// recovered recovers as often as the kernel says that the old server is not gone yet.
func recovered(t *testing.T, f blockdev.Frontend, d *disk, state blockdev.State) (blockdev.Device, *server) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		dev, err := f.Recover(context.Background(), state)
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, d, dev.Queue())
		err = dev.Start(context.Background())
		if err == nil {
			return dev, s
		}
		if !errors.Is(err, blockdev.ErrNotYet) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		t.Log(err)
		s.stop()
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecoverNoticesALivingServer: the kernel says "done" and drops the second server's socket.
func TestRecoverNoticesALivingServer(t *testing.T) {
	each(t, testRecoverNoticesALivingServer)
}

func testRecoverNoticesALivingServer(t *testing.T, fresh func() blockdev.Frontend) {
	f := fresh()
	d := &disk{mem: make([]byte, size)}
	first, _ := start(t, f, d, params("living@1"))
	second, err := f.Recover(context.Background(), first.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(context.Background()); !errors.Is(err, blockdev.ErrNotYet) {
		t.Errorf("Start beside a living server: %v, want ErrNotYet", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(first.Path()); err != nil || len(b) != size {
		t.Errorf("the first server no longer serves: %d bytes, %v", len(b), err)
	}
}

func TestRemoveWithoutAServer(t *testing.T) {
	each(t, testRemoveWithoutAServer)
}

func testRemoveWithoutAServer(t *testing.T, fresh func() blockdev.Frontend) {
	f := fresh()
	dev, err := f.Create(context.Background(), params("orphan@1"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, &disk{mem: make([]byte, size)}, dev.Queue())
	if err := dev.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	wrong := dev.State()
	wrong.ID = "somebody@else"
	if err := f.Remove(context.Background(), wrong); err != nil {
		t.Error(err)
	}
	if exists, err := f.Exists(dev.State()); err != nil || !exists {
		t.Fatalf("removed under another identity: %v, %v", exists, err)
	}
	for range 2 {
		if err := f.Remove(context.Background(), dev.State()); err != nil {
			t.Error(err)
		}
	}
	if exists, err := f.Exists(dev.State()); err != nil || exists {
		t.Errorf("Exists after Remove: %v, %v", exists, err)
	}
}
