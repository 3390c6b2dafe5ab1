//go:build vm

package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const (
	mib = 1 << 20
	// freeMemory is what the guest is left with.
	freeMemory = 200 * mib
	// pressurePatience is far more than writing needs; a deadlock for want of memory lasts for ever.
	pressurePatience = 15 * time.Minute
)

// TestMemoryPressure: far more is written to a file system on a volume than the machine has memory for, without swap, so that memory is
// freed only by what goes through the initiator.
func TestMemoryPressure(t *testing.T) {
	// A program that is mapped from the host's file system is read again over 9p, which needs much memory at a time.
	binary := filepath.Join("/dev/shm", filepath.Base(lab.Binary()))
	if err := copyFile(lab.Binary(), binary); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(binary) }) // goes with the machine anyway
	t.Setenv("AOE_CSI_BIN", binary)
	size := scaled(t, "MiB written back", 1024, 256)
	noticed := false
	for _, frontend := range lab.Frontends() {
		// The target's disk is memory set aside, mapped past the page cache: as if it were another machine's.
		t.Run("ethernet/"+frontend, func(t *testing.T) {
			l := lab.New(t)
			l.Frontend = frontend
			target, host := l.Host("t"), l.Host("a")
			disk(t, l, target, "dax,lazytime")
			far := target.Target(7)
			gen := managed(t, far, "e7.1", fmt.Sprintf("%dMi", size+128), host)
			// Another machine has memory: what the target does here must not wait for some. Blocks that are there need no
			// journal, and real time lets it have what is denied to the rest.
			l.Run("dd", "if=/dev/zero", "of="+lunFile(t, far), "bs=1M", fmt.Sprintf("count=%d", size+128), "conv=notrunc,fsync")
			l.Run("chrt", "--all-tasks", "--rr", "--pid", "1", fmt.Sprint(far.PID()))
			noticed = pressure(t, l, host, far, gen, size) || noticed
		})
		// The same machine has initiator and target, whose file is in the page cache.
		t.Run("storage host/"+frontend, func(t *testing.T) {
			l := lab.New(t)
			l.Frontend = frontend
			host := l.Host("s")
			disk(t, l, host, "")
			target := host.Target(7)
			gen := managed(t, target, "e7.1", fmt.Sprintf("%dMi", size+128), host)
			noticed = pressure(t, l, host, target, gen, size) || noticed
		})
	}
	if !noticed {
		t.Error("no target has noticed that memory was short")
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o700)
}

// disk gives a host's target the disk of memory that vm.env has set aside, until the test ends.
func disk(t *testing.T, l *lab.Lab, h *lab.Host, options string) {
	t.Helper()
	l.Run("modprobe", "-a", "nd_e820", "nd_pmem")
	l.Eventually(30*time.Second, "/dev/pmem0", func() error { _, err := os.Stat("/dev/pmem0"); return err })
	dir := filepath.Join(h.Dir, "luns")
	l.Run("mkdir", dir)
	l.Run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "/dev/pmem0")
	l.Run("mount", "-o", "defaults,"+options, "/dev/pmem0", dir)
	t.Cleanup(func() {
		if out, err := l.TryFor(time.Minute, "umount", dir); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
}

// pressure writes through a volume of the host, the target's e7.1, and says whether the target has noticed that memory was short.
func pressure(t *testing.T, l *lab.Lab, host *lab.Host, target *lab.Target, gen string, size int) (noticed bool) {
	t.Helper()
	i := host.Initiator()
	device := i.Attach("e7.1", "--generation", gen)
	silent := l.Complaints()
	dir := mount(t, l, device)
	l.Run("sysctl", "-qw", "vm.dirty_ratio=80", "vm.dirty_background_ratio=60") // reclaim meets dirty pages, not writers their limit
	t.Cleanup(func() { l.Run("sysctl", "-qw", "vm.dirty_ratio=20", "vm.dirty_background_ratio=10") })

	release := squeeze(t)
	defer release()
	began := time.Now()
	done := make(chan error, 1)
	file := filepath.Join(dir, "file")
	go func() { done <- writeMuch(file, size) }()
	least := watch(t, done, func() { release(); l.Diagnose() })
	took := time.Since(began)
	out, err := i.CLI(time.Minute, "stat", "-o", "wide")
	release()
	if err != nil {
		t.Errorf("stat: %v", err)
	}
	t.Log(out)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	if err := readMuch(file, size); err != nil {
		t.Error(err)
	}
	l.Run("umount", dir)
	l.Run("e2fsck", "-fn", device)
	i.Detach("e7.1")
	silent()
	if kernel := l.Run("dmesg"); strings.Contains(kernel, "Out of memory") {
		t.Error("the kernel has killed for want of memory")
	}
	noticed = strings.Contains(target.Log(), "Memory is short")
	figure(t, "%d MiB written back in %v with %d MiB to spare, at the least %d MiB free, target in real time: %v; %s", size,
		took.Round(time.Millisecond), freeMemory/mib, least/mib, noticed, initiatorMemory(t, i))
	return noticed
}

// squeeze takes all memory of the machine but what is to be left, and returns what gives it back.
func squeeze(t *testing.T) (release func()) {
	t.Helper()
	// What this process runs must not have to be read again when there is no memory.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	const chunk = 8 * mib
	var taken [][]byte
	for meminfo(t, "MemAvailable") > freeMemory+chunk {
		b, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(b); at += os.Getpagesize() {
			b[at] = 1
		}
		taken = append(taken, b)
	}
	t.Logf("took %d MiB; free %d MiB", len(taken)*chunk/mib, meminfo(t, "MemFree")/mib)
	return func() {
		for _, b := range taken {
			if err := unix.Munmap(b); err != nil {
				t.Error(err)
			}
		}
		taken = nil
		if err := unix.Munlockall(); err != nil {
			t.Error(err)
		}
	}
}

// watch waits for the end and returns the least free memory seen, bytes. A deadlock fails the test after help was called.
func watch(t *testing.T, done <-chan error, help func()) int {
	t.Helper()
	least := meminfo(t, "MemFree")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(pressurePatience)
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("writing: %v", err)
			}
			return least
		case <-tick.C:
			least = min(least, meminfo(t, "MemFree"))
		case <-limit:
			help()
			t.Fatalf("not written after %v", pressurePatience)
		}
	}
}

// meminfo reads a line of /proc/meminfo, in bytes.
func meminfo(t *testing.T, key string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				return kib << 10
			}
		}
	}
	t.Fatalf("no %s in /proc/meminfo", key)
	return 0
}

// initiatorMemory says what the initiator holds.
func initiatorMemory(t *testing.T, i *lab.Initiator) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "VmHWM:") || strings.HasPrefix(line, "VmLck:") {
			parts = append(parts, strings.Join(strings.Fields(line), " "))
		}
	}
	return "initiator " + strings.Join(parts, ", ")
}

// writeMuch writes so many MiB that readMuch knows again, through the page cache, and makes them durable.
func writeMuch(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	source := rand.NewChaCha8([32]byte{1})
	block := make([]byte, mib)
	for range size {
		_, _ = source.Read(block) // never fails
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func readMuch(path string, size int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	source := rand.NewChaCha8([32]byte{1})
	want, got := make([]byte, mib), make([]byte, mib)
	for n := range size {
		_, _ = source.Read(want) // never fails
		if _, err := io.ReadFull(f, got); err != nil {
			return fmt.Errorf("MiB %d: %w", n, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("MiB %d is not what was written", n)
		}
	}
	return nil
}
