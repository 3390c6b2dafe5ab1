//go:build vm

package recovery

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// pause is the longest time between two kills: often shorter than a restart, and longer than NBD's request timers.
const pause = 6 * time.Second

// TestKills: the initiator is killed at random moments under a verified load on a file system, also while it is starting:
// no I/O fails, nothing differs, the file system is clean.
func TestKills(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		host := l.Host("a")
		i := host.Supervised()
		survive(t, l, i, scaled(t, "kills", 50, 6), func() time.Time { return i.Signal(syscall.SIGKILL) })
	})
}

// TestTerminations: SIGTERM leaves the devices to the next initiator as a kill does.
func TestTerminations(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		host := l.Host("a")
		i := host.Initiator()
		survive(t, l, i, scaled(t, "terminations", 10, 2), func() time.Time {
			when := time.Now()
			if err := i.Terminate(15 * time.Second); err != nil {
				t.Fatal(err)
			}
			i.StartAgain()
			return when
		})
	})
}

// survive ends the initiator again and again under load; end has it end and start again, and returns when it ended.
func survive(t *testing.T, l *lab.Lab, i *lab.Initiator, times int, end func() time.Time) {
	t.Helper()
	target := l.Host("t").Target(7)
	gen := managed(t, target, "e7.1", "256Mi", i.Host)
	device := i.Attach("e7.1", "--generation", gen)
	silent := l.Complaints()
	dir := mount(t, l, device)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	moments := make([]time.Duration, times) // since the start of the load
	at := time.Second
	for n := range moments {
		at += time.Duration(random.Int64N(int64(pause)))
		moments[n] = at
	}
	load := i.Start(lab.FioVerify("load", filepath.Join(dir, "load"), at+10*time.Second)...)
	probe := probe(t, filepath.Join(dir, "probe"))
	var ends []time.Time
	for begin := time.Now(); len(ends) < times && load.Running(); {
		time.Sleep(time.Until(begin.Add(moments[len(ends)])))
		ends = append(ends, end())
	}
	stillRunning := load.Running()
	out, err := load.Wait(time.Minute)
	if err != nil {
		l.Diagnose()
		t.Fatalf("fio while the initiator ended %d times: %v\n%s", len(ends), err, out)
	}
	probe.stop()
	if !stillRunning || len(ends) < times {
		t.Errorf("the load was over after %d of %d ends of the initiator", len(ends), times)
	}
	l.Run("umount", dir)
	l.Run("e2fsck", "-fn", device)
	i.Detach("e7.1")
	silent()
	report(t, l, probe, restarts(t, i.Log(), ends), len(ends))
}

// report prints how long I/O stood still, and fails the test when a front end took longer than it may.
func report(t *testing.T, l *lab.Lab, p *prober, down []span, ends int) {
	t.Helper()
	if len(down) == 0 {
		t.Error("the log has no restart that ended")
		return
	}
	lengths := make([]time.Duration, 0, len(down))
	for _, d := range down {
		lengths = append(lengths, d.length())
	}
	beyond := p.beyond(down)
	const ms = time.Millisecond
	figure(t, "the initiator ended %d times, 0 I/O errors, 0 mismatches; longest stall %v; restarts up to %v; longest stall beyond a restart %v (the machine's own lag %v)",
		ends, p.longest().Round(ms), slices.Max(lengths).Round(ms), beyond.Round(ms), p.lag.Round(ms))
	if limit := stallLimit[l.Frontend]; beyond > limit+p.lag {
		t.Errorf("I/O stood still for %v after the restart was over, more than %v", beyond, limit)
	}
}

// stallLimit is how long after a restart I/O may still wait. ublk's kernel gives requests out again at once, NBD's when their
// timer of 5 s fires, which it looks at once in 5 s.
var stallLimit = map[string]time.Duration{"ublk": 2 * time.Second, "nbd": 11 * time.Second}
