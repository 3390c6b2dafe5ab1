package linktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

var (
	macA = [6]byte{2, 0, 0, 0, 0, 0xa}
	macB = [6]byte{2, 0, 0, 0, 0, 0xb}
	macC = [6]byte{2, 0, 0, 0, 0, 0xc}
	all  = [6]byte{255, 255, 255, 255, 255, 255}
)

func newPool(t testing.TB, size, initial, most int) *pool.Pool {
	t.Helper()
	p, err := pool.New(pool.Config{FrameSize: size, Initial: initial, Max: most})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func closeLinks(t testing.TB, links ...*Link) {
	t.Helper()
	for _, l := range links {
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// send sends one numbered frame and gives up the owner's hold, as for a frame that is not resent.
func send(t testing.TB, p *pool.Pool, l *Link, dst [6]byte, number uint32, length int) {
	t.Helper()
	f := p.Get()
	if f == nil {
		t.Fatalf("no frame: %+v", p.Stats())
	}
	b := f.Buf()
	copy(b, dst[:])
	mac := l.MAC()
	copy(b[6:], mac[:])
	binary.BigEndian.PutUint32(b[20:], number)
	f.SetLen(length)
	if n, err := l.Send([]*pool.Frame{f}); n != 1 || err != nil {
		t.Fatalf("send: %d, %v", n, err)
	}
	f.Release()
}

// receive returns the numbers of all frames that wait.
func receive(t testing.TB, l *Link) []uint32 {
	t.Helper()
	var numbers []uint32
	dst := make([][]byte, 5)
	for {
		n, err := l.Receive(dst)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return numbers
		}
		for _, b := range dst[:n] {
			numbers = append(numbers, binary.BigEndian.Uint32(b[20:]))
		}
	}
}

func upTo(n int) (numbers []uint32) {
	for i := range n {
		numbers = append(numbers, uint32(i))
	}
	return numbers
}

func TestPerfectNetwork(t *testing.T) {
	n := NewNetwork(1, Profile{})
	a, b, c, b2 := n.Link(macA), n.Link(macB), n.Link(macC), n.Link(macB)
	defer closeLinks(t, a, b, c, b2)
	p := newPool(t, 1514, 4, 4)
	for i := range 20 {
		send(t, p, a, macB, uint32(i), 60)
	}
	for _, l := range []*Link{b, b2} { // two sockets on one interface
		if got := receive(t, l); !slices.Equal(got, upTo(20)) {
			t.Errorf("%s received %v", l.Name(), got)
		}
	}
	if got := receive(t, c); got != nil {
		t.Errorf("a bystander received %v", got)
	}
	send(t, p, b, all, 7, 60)
	if got := [][]uint32{receive(t, a), receive(t, b), receive(t, c), receive(t, b2)}; fmt.Sprint(got) != "[[7] [] [7] []]" {
		t.Errorf("broadcast from b received as %v", got)
	}
	send(t, p, a, [6]byte{2, 9}, 8, 60)
	if s := n.Stats(); s.Unrouted != 1 {
		t.Errorf("%+v", s)
	}
}

func TestFilter(t *testing.T) {
	n := NewNetwork(1, Profile{})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	b.SetFilter(func(f []byte) bool { return f[23]%2 == 1 })
	p := newPool(t, 100, 1, 1)
	for i := range 6 {
		send(t, p, a, macB, uint32(i), 60)
	}
	if got := receive(t, b); !slices.Equal(got, []uint32{1, 3, 5}) {
		t.Errorf("received %v", got)
	}
}

func TestDelayOnTheVirtualClock(t *testing.T) {
	n := NewNetwork(1, Profile{Delay: 3 * time.Millisecond})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	send(t, p, a, macB, 1, 60)
	n.Advance(Epoch.Add(time.Millisecond))
	send(t, p, a, macB, 2, 60)
	steps := []struct {
		ms   int
		want string
		next string
	}{{2, "[]", "3ms"}, {3, "[1]", "4ms"}, {1, "[]", "4ms"}, {4, "[2]", "none"}}
	for _, s := range steps {
		n.Advance(Epoch.Add(time.Duration(s.ms) * time.Millisecond))
		next := "none"
		if at, ok := n.Next(); ok {
			next = at.Sub(Epoch).String()
		}
		if got := fmt.Sprint(receive(t, b)); got != s.want || next != s.next {
			t.Errorf("at %d ms: received %s, next %s; want %s, %s", s.ms, got, next, s.want, s.next)
		}
	}
}

// rough is everything at once.
var rough = Profile{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Delay: time.Millisecond, Jitter: 100 * time.Microsecond}

// run sends 1000 frames through a rough network and returns what arrived.
func run(t *testing.T, seed int64) ([]uint32, Stats) {
	n := NewNetwork(seed, rough)
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	var got []uint32
	for i := range 1000 {
		send(t, p, a, macB, uint32(i), 60)
		n.Advance(Epoch.Add(time.Duration(i) * 50 * time.Microsecond))
		got = append(got, receive(t, b)...)
	}
	for at, ok := n.Next(); ok; at, ok = n.Next() {
		n.Advance(at)
		got = append(got, receive(t, b)...)
	}
	return got, n.Stats()
}

func TestSeedsReplay(t *testing.T) {
	first, stats := run(t, 42)
	again, _ := run(t, 42)
	other, _ := run(t, 43)
	if !slices.Equal(first, again) {
		t.Error("the same seed made another run")
	}
	if slices.Equal(first, other) {
		t.Error("another seed made the same run")
	}
	if stats.Sent != 1000 || stats.Delivered != 1000-stats.Lost+stats.Duplicated || len(first) != stats.Delivered {
		t.Errorf("%d received, %+v", len(first), stats)
	}
	for name, n := range map[string]int{"lost": stats.Lost, "duplicated": stats.Duplicated, "late": late(first)} {
		if n < 50 || n > 200 {
			t.Errorf("%d of 1000 %s at a probability of 0.1", n, name)
		}
	}
}

// late counts frames that arrived at least ten places after one sent later.
func late(numbers []uint32) (n int) {
	highest := uint32(0)
	for _, v := range numbers {
		if v+10 <= highest {
			n++
		}
		highest = max(highest, v)
	}
	return n
}

func TestDelayedRelease(t *testing.T) {
	n := NewNetwork(1, Profile{ReleaseDelay: 2 * time.Second})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 2, 4)
	for i := range 4 {
		send(t, p, a, macB, uint32(i), 60)
	}
	if p.Get() != nil {
		t.Fatal("a frame that the network holds was given out")
	}
	if got := receive(t, b); len(got) != 4 {
		t.Fatalf("received %v before the release", got)
	}
	n.Advance(Epoch.Add(2*time.Second - 1))
	if s := p.Stats(); s.Free != 0 || s.Grown != 2 {
		t.Fatalf("just before the release %+v", s)
	}
	n.Advance(Epoch.Add(2 * time.Second))
	if s := p.Stats(); s.Free != 4 {
		t.Fatalf("after the release %+v", s)
	}
	if err := n.Err(); err != nil {
		t.Error(err)
	}
}

func TestChangedWhileHeldIsSeen(t *testing.T) {
	n := NewNetwork(1, Profile{ReleaseDelay: time.Second})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	f := p.Get()
	f.SetLen(60)
	copy(f.Buf(), macB[:])
	if _, err := a.Send([]*pool.Frame{f}); err != nil {
		t.Fatal(err)
	}
	f.Buf()[30] = 0xee
	n.Advance(Epoch.Add(time.Second))
	if err := n.Err(); err == nil || !strings.Contains(err.Error(), "1 frames changed") {
		t.Errorf("error %v", err)
	}
	f.Release()
}

func TestCloseReleases(t *testing.T) {
	n := NewNetwork(1, Profile{ReleaseDelay: time.Hour})
	a, b := n.Link(macA), n.Link(macB)
	p := newPool(t, 100, 1, 1)
	send(t, p, a, macB, 1, 60)
	closeLinks(t, a, b)
	if s := p.Stats(); s.Free != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := a.Send(nil); !errors.Is(err, link.ErrDown) {
		t.Errorf("send on a closed link: %v", err)
	}
}

func TestLengths(t *testing.T) {
	n := NewNetwork(1, Profile{MTU: 9000, PathMTU: 1500})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 10000, 1, 1)
	send(t, p, a, macB, 1, 1514)
	send(t, p, a, macB, 2, 1515)
	send(t, p, a, macB, 3, 9014)
	if got := receive(t, b); !slices.Equal(got, []uint32{1}) {
		t.Errorf("received %v", got)
	}
	f := p.Get()
	defer f.Release()
	f.SetLen(9015)
	if sent, err := a.Send([]*pool.Frame{f}); sent != 0 || !errors.Is(err, link.ErrTooLong) {
		t.Errorf("sent %d, %v", sent, err)
	}
	if f.Shared() {
		t.Error("a refused frame is held")
	}
}

func TestBlockTapDown(t *testing.T) {
	n := NewNetwork(1, Profile{})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 2, 2)
	n.Block(macA, macB)
	send(t, p, a, macB, 1, 60)
	send(t, p, b, macA, 2, 60)
	if got := fmt.Sprint(receive(t, b), receive(t, a)); got != "[] [2]" {
		t.Errorf("blocked one way: %s", got)
	}
	n.Unblock(macA, macB)
	n.SetTap(func(f []byte) bool { return f[23] != 4 })
	for i := range 6 {
		send(t, p, a, macB, uint32(i), 60)
	}
	if got := fmt.Sprint(receive(t, b)); got != "[0 1 2 3 5]" {
		t.Errorf("tapped: %s", got)
	}
	b.SetDown(true)
	send(t, p, a, macB, 7, 60)
	if _, err := b.Receive(make([][]byte, 1)); !errors.Is(err, link.ErrDown) {
		t.Errorf("receive while down: %v", err)
	}
	b.SetDown(false)
	send(t, p, a, macB, 8, 60)
	if got := fmt.Sprint(receive(t, b)); got != "[8]" {
		t.Errorf("after down: %s", got)
	}
}

func TestQueueOverflows(t *testing.T) {
	n := NewNetwork(1, Profile{Queue: 3})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	for i := range 5 {
		send(t, p, a, macB, uint32(i), 60)
	}
	if got, s := receive(t, b), n.Stats(); len(got) != 3 || s.Overflowed != 2 {
		t.Errorf("received %v, %+v", got, s)
	}
}

func TestLentUntilNextReceive(t *testing.T) {
	n := NewNetwork(1, Profile{})
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	send(t, p, a, macB, 1, 60)
	dst := make([][]byte, 1)
	if _, err := b.Receive(dst); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(dst[0])
	send(t, p, a, macB, 2, 60)
	if !bytes.Equal(dst[0], before) {
		t.Error("a lent frame changed before the next Receive")
	}
}

// readable waits until one of the links' FDs is.
func readable(t *testing.T, timeout time.Duration, links ...*Link) bool {
	t.Helper()
	var fds []unix.PollFd
	for _, l := range links {
		fds = append(fds, unix.PollFd{Fd: int32(l.FD()), Events: unix.POLLIN})
	}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		if err != unix.EINTR {
			if err != nil {
				t.Error(err) // also called beside the test's goroutine
			}
			return n > 0
		}
	}
}

func TestRealTime(t *testing.T) {
	n := NewNetwork(1, Profile{Delay: 2 * time.Millisecond, ReleaseDelay: 5 * time.Millisecond})
	stop := n.Start()
	defer stop()
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	p := newPool(t, 100, 1, 1)
	if readable(t, 0, a, b) {
		t.Fatal("readable before anything was sent")
	}
	began := time.Now()
	send(t, p, a, macB, 1, 60)
	if !readable(t, 10*time.Second, b) {
		t.Fatal("never readable")
	}
	if got := fmt.Sprint(receive(t, b)); got != "[1]" {
		t.Errorf("received %s", got)
	}
	if d := time.Since(began); d < 2*time.Millisecond {
		t.Errorf("arrived after %v", d)
	}
	if readable(t, 0, b) {
		t.Error("readable after everything was received")
	}
	if !readable(t, 10*time.Second, a) {
		t.Fatal("no word of the frame to let go")
	}
	if got := receive(t, a); got != nil {
		t.Errorf("received %v", got)
	}
	if s := p.Stats(); s.Free != 1 {
		t.Errorf("not let go: %+v", s)
	}
	if d := time.Since(began); d < 5*time.Millisecond {
		t.Errorf("let go after %v", d)
	}
}

func TestRealTimeThreads(t *testing.T) {
	const frames = 2000
	n := NewNetwork(1, Profile{Jitter: 200 * time.Microsecond, ReleaseDelay: 100 * time.Microsecond})
	stop := n.Start()
	defer stop()
	a, b := n.Link(macA), n.Link(macB)
	defer closeLinks(t, a, b)
	done := make(chan int)
	go func() {
		got := 0
		dst := make([][]byte, 64)
		for got < frames {
			if !readable(t, 10*time.Second, b) {
				break
			}
			r, err := b.Receive(dst)
			if err != nil {
				t.Error(err)
				break
			}
			got += r
		}
		done <- got
	}()
	p := newPool(t, 100, 8, 64)
	for i := range frames {
		for {
			f := p.Get()
			if f == nil {
				readable(t, 10*time.Second, a)
				receive(t, a)
				continue
			}
			copy(f.Buf(), macB[:])
			binary.BigEndian.PutUint32(f.Buf()[20:], uint32(i))
			f.SetLen(60)
			if _, err := a.Send([]*pool.Frame{f}); err != nil {
				t.Error(err)
			}
			f.Release()
			break
		}
	}
	if got := <-done; got != frames {
		t.Errorf("received %d of %d", got, frames)
	}
	if err := n.Err(); err != nil {
		t.Error(err)
	}
}

func BenchmarkNetwork(b *testing.B) {
	n := NewNetwork(1, Profile{Delay: time.Millisecond})
	from, to := n.Link(macA), n.Link(macB)
	defer closeLinks(b, from, to)
	p := newPool(b, 9014, 1, 1)
	dst := make([][]byte, 64)
	now := Epoch
	for b.Loop() {
		send(b, p, from, macB, 1, 8740)
		now = now.Add(20 * time.Microsecond)
		n.Advance(now)
		if _, err := to.Receive(dst); err != nil {
			b.Fatal(err)
		}
	}
}
