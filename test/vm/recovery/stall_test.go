//go:build vm

package recovery

import (
	"fmt"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// span is a time from … to.
type span struct{ from, to time.Time }

func (s span) length() time.Duration { return s.to.Sub(s.from) }

// prober writes and reads one block of a file in turn, past the page cache, and notes what takes long.
type prober struct {
	t    *testing.T
	quit chan struct{}
	done sync.WaitGroup
	long []span        // I/O that took longer than noteworthy
	lag  time.Duration // the longest that the machine kept this process from running
}

const (
	noteworthy = 100 * time.Millisecond
	probeEvery = 5 * time.Millisecond
)

// probe starts a prober on a file that it makes.
func probe(t *testing.T, path string) *prober {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		t.Fatal(err)
	}
	p := &prober{t: t, quit: make(chan struct{})}
	p.done.Go(func() {
		defer f.Close()
		for write := true; ; write = !write {
			began := time.Now()
			if write {
				_, err = f.WriteAt(block, 0)
			} else {
				_, err = f.ReadAt(block, 0)
			}
			if err != nil {
				t.Errorf("probe: %v", err)
				return
			}
			if s := (span{began, time.Now()}); s.length() > noteworthy {
				p.long = append(p.long, s)
			}
			slept := time.Now()
			select {
			case <-p.quit:
				return
			case <-time.After(probeEvery):
			}
			p.lag = max(p.lag, time.Since(slept)-probeEvery)
		}
	})
	return p
}

// stop ends the prober after the I/O that is under way.
func (p *prober) stop() {
	close(p.quit)
	p.done.Wait()
}

// longest is the longest I/O.
func (p *prober) longest() time.Duration {
	var longest time.Duration
	for _, s := range p.long {
		longest = max(longest, s.length())
	}
	return longest
}

// beyond is the longest time that an I/O waited after the restart, if any, was over that held it up.
func (p *prober) beyond(restarts []span) time.Duration {
	var longest time.Duration
	for _, s := range p.long {
		from := s.from
		for _, r := range restarts {
			if r.from.Before(s.to) && r.to.After(from) {
				from = r.to
			}
		}
		longest = max(longest, s.to.Sub(from))
	}
	return longest
}

// tookOver finds the moments at which the initiator's log says that it serves an earlier one's device.
var tookOver = regexp.MustCompile(`(?m)^I(\d{4} \d\d:\d\d:\d\d\.\d{6}) .*"Took over from an earlier initiator"`)

// restarts are the times from an end of the initiator until a device is served again, or until it ends again before that.
func restarts(t *testing.T, log string, ends []time.Time) []span {
	t.Helper()
	var served []time.Time
	for _, m := range tookOver.FindAllStringSubmatch(log, -1) {
		when, err := time.ParseInLocation("2006 0102 15:04:05.000000", fmt.Sprintf("%d %s", ends[0].Year(), m[1]), time.Local)
		if err != nil {
			t.Fatal(err)
		}
		served = append(served, when)
	}
	var all []span
	for n, end := range ends {
		for _, s := range served {
			if s.Before(end) {
				continue
			}
			if n+1 < len(ends) && ends[n+1].Before(s) {
				s = ends[n+1]
			}
			all = append(all, span{end, s})
			break
		}
	}
	return all
}
