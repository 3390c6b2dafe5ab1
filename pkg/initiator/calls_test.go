package initiator

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counterHandler is a handler over an eventfd.
type counterHandler struct {
	fd            int
	ready, sleeps atomic.Int64
}

func (c *counterHandler) Ready(uint32) {
	var b [8]byte
	if _, err := unix.Read(c.fd, b[:]); err == nil {
		c.ready.Add(1)
	}
}

func (c *counterHandler) BeforeSleep() { c.sleeps.Add(1) }

func TestWatch(t *testing.T) {
	shard := newSegment(t).shard("")
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	h := &counterHandler{fd: fd}
	ctx := context.Background()
	onShard := func(f func()) {
		t.Helper()
		if err := shard.Do(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	onShard(func() { err = shard.Watch(fd, h) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); h.ready.Load() == 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if h.ready.Load() != 1 || h.sleeps.Load() == 0 {
		t.Errorf("ready %d, before sleep %d", h.ready.Load(), h.sleeps.Load())
	}
	onShard(func() { err = shard.WatchReads(fd, false) })
	if err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	onShard(func() {})
	onShard(func() {})
	if h.ready.Load() != 1 {
		t.Error("called for reading while that was off")
	}
	onShard(func() { err = shard.WatchWrites(fd, true) }) // an eventfd is always writable
	for deadline := time.Now().Add(5 * time.Second); h.ready.Load() == 1 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if err != nil || h.ready.Load() == 1 {
		t.Errorf("not called for writing: %v", err)
	}
	onShard(func() { shard.Unwatch(fd); shard.Unwatch(fd) })
	sleeps := h.sleeps.Load()
	onShard(func() {})
	onShard(func() {})
	if h.sleeps.Load() != sleeps {
		t.Error("called after Unwatch")
	}
}

func TestDo(t *testing.T) {
	s := newSegment(t)
	shard, err := NewShard(ShardConfig{Open: s.open})
	if err != nil {
		t.Fatal(err)
	}
	var order [8][]int // by caller; one thread runs all calls, so nothing guards it
	var group sync.WaitGroup
	for caller := range order {
		group.Go(func() {
			for i := range 100 {
				if err := shard.Do(context.Background(), func() { order[caller] = append(order[caller], i) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for caller, calls := range order {
		if len(calls) != 100 || !slices.IsSorted(calls) {
			t.Errorf("caller %d: %d calls, in order %v", caller, len(calls), slices.IsSorted(calls))
		}
	}
	nested := false
	if err := shard.Do(context.Background(), func() {
		if err := shard.Do(context.Background(), func() { nested = true }); err != nil {
			t.Error(err)
		}
	}); err != nil || !nested {
		t.Errorf("nested: %v, %v", nested, err)
	}
	begun, hold := make(chan struct{}), make(chan struct{})
	group.Go(func() {
		if err := shard.Do(context.Background(), func() { close(begun); <-hold }); err != nil {
			t.Error(err)
		}
	})
	<-begun
	if err := shard.Do(within(t, 20*time.Millisecond), func() {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind a long call: %v", err)
	}
	close(hold)
	group.Wait()
	for range 2 {
		if err := shard.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := shard.Do(context.Background(), func() { t.Error("ran") }); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestShardLeavesNothingOpen(t *testing.T) {
	before := openFiles(t)
	for range 3 {
		s := newSegment(t)
		shard, err := NewShard(ShardConfig{Interfaces: []string{"eth0"}, Open: s.open})
		if err != nil {
			t.Fatal(err)
		}
		attach(t, shard) // and not detached
		if err := shard.Close(); err != nil {
			t.Error(err)
		}
		// The segment's own end of each link stays until the test's end: one eventfd.
		before++
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, want %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
