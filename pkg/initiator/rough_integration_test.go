//go:build integration

package initiator

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// shape runs tc.
func shape(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("tc", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("tc %s: %v\n%s", args, err, out)
	}
}

// lose drops a part of what arrives at interfaces, by chance, until the function that it returns is called. A BPF program does, since
// not every kernel has netem.
func lose(t *testing.T, percent uint64, ifnames ...string) (end func()) {
	t.Helper()
	// ld #random; jge #part, ok, shoot; ok: ret 0; shoot: ret 2
	part := min(percent<<32/100, 1<<32-1)
	for _, name := range ifnames {
		shape(t, "qdisc add dev "+name+" clsact")
		out, err := exec.Command("tc", "filter", "add", "dev", name, "ingress", "bpf", "da", "bytecode",
			fmt.Sprintf("4,32 0 0 4294963256,53 0 1 %d,6 0 0 0,6 0 0 2", part)).CombinedOutput()
		if err != nil {
			t.Fatalf("tc filter: %v\n%s", err, out)
		}
	}
	return func() {
		for _, name := range ifnames {
			shape(t, "qdisc del dev "+name+" clsact")
		}
	}
}

// TestLossyCable: with frames lost in both directions nothing is wrong, and hardly anything waits for a timeout.
func TestLossyCable(t *testing.T) {
	ours, theirs := cable(t, "lo", 9000)
	newShelf(t, []string{theirs}, ours)
	d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	lose(t, 2, ours, theirs)
	load(t, d, 8, 100)
	s := d.Stats()
	t.Logf("%d frames, %d of them again; %+v", s.FramesSent, s.Retransmits, d.Paths())
	if s.Retransmits == 0 || s.Errors != 0 {
		t.Errorf("stats %+v", s)
	}
}

// pulse asks for a sector again and again and knows the longest that an answer took since it was last asked.
type pulse struct {
	longest atomic.Int64
	stop    chan struct{}
	done    chan struct{}
}

func newPulse(t *testing.T, d *Device) *pulse {
	p := &pulse{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		data := make([]byte, 512)
		for {
			select {
			case <-p.stop:
				return
			default:
			}
			begin := time.Now()
			if err := do(t, d, &Request{Op: OpRead, Sectors: 1, Data: data}); err != nil {
				t.Error(err)
				return
			}
			p.longest.Store(max(p.longest.Load(), int64(time.Since(begin))))
		}
	}()
	return p
}

func (p *pulse) lap() time.Duration { return time.Duration(p.longest.Swap(0)) }

// TestPulledPath: one of two paths goes silent under a load that is compared; its carrier stays. No request fails, and the path
// is left and comes back. What requests wait is printed, not judged, since a busy machine makes them wait as long without any trouble: that is
// the matter of TestPulledPathCostsTwoTimeouts, which has its own time, and of make bench.
func TestPulledPath(t *testing.T) {
	ours1, theirs1 := cable(t, "pa", 9000)
	ours2, theirs2 := cable(t, "pb", 9000)
	newShelf(t, []string{theirs1, theirs2}, ours1, ours2)
	d, err := packetShard(t, "", ours1, ours2).Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	paths := func(want int) func() bool {
		return func() bool {
			up := 0
			for _, p := range d.Paths() {
				if p.State == PathUp {
					up++
				}
			}
			return up == want
		}
	}
	eventually(t, "both paths are up", paths(2))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				load(t, d, 8, 20)
			}
		}
	}()
	p := newPulse(t, d)
	for round := range 3 {
		p.lap()
		time.Sleep(500 * time.Millisecond) // of load, to see what a request takes here
		quiet := p.lap()
		timeout := time.Duration(0)
		for _, path := range d.Paths() {
			timeout = max(timeout, path.Timeout)
		}
		end := lose(t, 100, ours2, theirs2)
		eventually(t, "the path is left", paths(1))
		time.Sleep(500 * time.Millisecond) // of load over the other one
		stall := p.lap()
		t.Logf("round %d: longest request %v, %.1f timeouts of %v; before %v", round, stall, float64(stall)/float64(timeout), timeout, quiet)
		end()
		eventually(t, "the path is back", paths(2))
	}
	close(p.stop)
	<-p.done
	close(stop)
	<-done
	if s := d.Stats(); s.Errors != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestFullQueue: interfaces keep what they are given for 50 ms. What is outstanding is bounded by the window, which a smaller pool bounds, and
// over two paths by the pool's ceiling, where requests wait; nothing fails or is sent again for nothing. That a link which lets go of frames late makes the pool grow up to its ceiling
// is TestPoolCeiling's matter: this one copies.
func TestFullQueue(t *testing.T) {
	for _, tc := range []struct{ paths, poolMax, outstanding int }{{1, DefaultPoolMax, 64}, {1, 16, 16}, {2, 64, 64}} {
		t.Run(fmt.Sprintf("%d paths, %d frames", tc.paths, tc.poolMax), func(t *testing.T) {
			var ours, theirs []string
			for i := range tc.paths {
				o, th := cable(t, fmt.Sprint("fq", i), 9000)
				ours, theirs = append(ours, o), append(theirs, th)
			}
			newShelf(t, theirs, ours...)
			for _, name := range ours { // at this rate it takes 50 ms to send 64 frames of 8.7 kB
				shape(t, "qdisc add dev "+name+" root tbf rate 89mbit burst 18k limit 64m")
			}
			cfg := testDevice()
			cfg.PoolMax = tc.poolMax
			d, err := packetShard(t, "", ours...).Attach(within(t, 10*time.Second), cfg)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "all paths are known", func() bool { return len(d.Paths()) == tc.paths })
			for try := 1; ; try++ {
				s, earlier := writeStreams(t, d, 400), d.Stats().Writes
				eventually(t, "the path's timeout follows the queue", func() bool { return d.Stats().Writes >= earlier+100 })
				before, begin := d.Stats(), time.Now()
				<-s.done
				if s.err != nil {
					t.Fatal(s.err)
				}
				stats, path := d.Stats(), d.Paths()[0]
				again, sent := stats.Retransmits-before.Retransmits, stats.FramesSent-before.FramesSent
				t.Logf("%.1f MB/s, round trip %v, window %d; pool %d of %d frames, grown %d, at its ceiling %d times; %d frames sent, %d of them again",
					float64(stats.WriteBytes-before.WriteBytes)/1e6/time.Since(begin).Seconds(), path.RTT, path.Window, stats.PoolFrames, stats.PoolCeiling, stats.PoolGrown, stats.PoolCapped, sent, again)
				if stats.PoolFrames != tc.outstanding || stats.PoolGrown != 0 || (stats.PoolCapped > 0) != (tc.paths > 1) || path.Window > tc.poolMax {
					t.Errorf("stats %+v", stats)
				}
				if want := time.Duration(tc.outstanding/tc.paths) * 8740 * 8 * time.Second / 89e6; path.RTT < want/2 {
					t.Errorf("round trip %v, want about %v: the queue is not full", path.RTT, want)
				}
				if again*10 <= sent {
					break
				}
				// A machine that stands still for 20 ms costs a window of them; a timeout that does not follow the queue does so every time.
				if try == 3 {
					t.Errorf("%d of %d frames were sent again, and more than a tenth in two tries before", again, sent)
					break
				}
			}
		})
	}
}

// writeStreams writes 128k at a time, 32 times at once.
func writeStreams(t *testing.T, d *Device, requests int) *streams {
	t.Helper()
	s := &streams{d: d, left: requests - 32, out: 32, done: make(chan struct{})}
	if err := d.Shard().Do(context.Background(), func() {
		for i := range s.out {
			d.Submit(&Request{Op: OpWrite, LBA: uint64(i) * 8, Sectors: 256, Data: make([]byte, 256*512), Done: s})
		}
	}); err != nil {
		t.Fatal(err)
	}
	return s
}
