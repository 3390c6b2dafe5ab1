//go:build vm

package soak

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// lives is how many volumes there are at once.
const lives = 3

type soak struct {
	t         *testing.T
	lab       *lab.Lab
	target    *lab.Target
	initiator *lab.Initiator
	shelves   *provision.Shelves
	random    *rand.Rand // of what goes wrong
	deadline  time.Time
	rough     bool           // the network, now
	peaks     map[string]int // KiB of memory that a process had at most

	mu     sync.Mutex
	counts map[string]int
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// TestSoak lasts HOURS, 1 if that is not said, and then as long as what was begun.
func TestSoak(t *testing.T) {
	hours, seed := number(t, "HOURS", 1), uint64(number(t, "SEED", float64(rand.Uint32())))
	t.Logf("seed %d", seed)
	l := lab.New(t)
	s := &soak{
		t: t, lab: l, target: l.Host("t").Target(7), initiator: l.Host("a").Supervised(), random: rand.New(rand.NewPCG(seed, 0)),
		deadline: time.Now().Add(time.Duration(hours * float64(time.Hour))), counts: map[string]int{}, peaks: map[string]int{},
	}
	s.shelves = provision.NewShelves(provision.ShelvesConfig{Sources: []provision.Source{provision.StaticSource("unix://" + s.target.API())}})
	defer func() { _ = s.shelves.Close() }()
	silent := l.Complaints()
	ends := make(chan error, lives)
	for slot := range lives {
		v := &life{s: s, slot: uint8(slot), random: rand.New(rand.NewPCG(seed, uint64(slot)+1))}
		go func() { ends <- v.run() }()
	}
	running := lives
	for running > 0 {
		select {
		case err := <-ends:
			running--
			if err != nil {
				l.Diagnose()
				t.Fatal(err)
			}
		case <-time.After(time.Duration(500+s.random.IntN(6000)) * time.Millisecond):
			if time.Now().Before(s.deadline) {
				s.trouble()
			}
		}
		s.look()
	}
	s.change(nil)
	s.initiator.NothingLeft()
	silent()
	s.report(hours, seed)
}

// number is what an environment variable says.
func number(t *testing.T, name string, otherwise float64) float64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// weather is what the network does to frames from now on.
var weather = [][]string{
	nil,
	{"loss", "1%"},
	{"loss", "5%"},
	{"duplicate", "2%", "delay", "1ms"},
	{"delay", "2ms", "1ms", "reorder", "25%", "50%"},
	{"delay", "5ms", "3ms"},
	{"delay", "300us", "100us", "loss", "1%", "duplicate", "1%", "reorder", "10%", "50%"},
}

// trouble is one thing that goes wrong, and is put right.
func (s *soak) trouble() {
	s.t.Helper()
	short := func() { time.Sleep(time.Duration(s.random.IntN(2500)) * time.Millisecond) }
	switch s.random.IntN(6) {
	case 0:
		s.initiator.Signal(syscall.SIGKILL)
		s.count("initiator killed")
	case 1:
		if err := s.initiator.Terminate(30 * time.Second); err != nil {
			s.t.Fatal(err)
		}
		s.initiator.StartAgain()
		s.count("initiator terminated")
	case 2:
		s.target.Kill()
		short()
		s.target.StartAgain()
		s.count("target killed")
	case 3:
		host := []*lab.Host{s.target.Host, s.initiator.Host}[s.random.IntN(2)]
		host.Unplug()
		short()
		host.Plug()
		s.count("cable pulled")
	default:
		s.change(weather[s.random.IntN(len(weather))])
		s.count("weather of the network changed")
	}
}

func (s *soak) change(to []string) {
	s.t.Helper()
	if to != nil || s.rough {
		s.initiator.Netem(to...)
	}
	s.rough = to != nil
}

// look notes how much memory the processes have had.
func (s *soak) look() {
	for name, pid := range map[string]int{"target": s.target.PID(), "initiator": s.initiator.PID()} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(data), "VmHWM:")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if kib, err := strconv.Atoi(fields[0]); err == nil {
				s.peaks[name] = max(s.peaks[name], kib)
			}
		}
	}
}

// report prints the table, and leaves it where it outlives the guest.
func (s *soak) report(hours float64, seed uint64) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %g h, seed %d, Linux %s\n\n| | |\n|---|---|\n", time.Now().UTC().Format(time.DateOnly), hours, seed, strings.TrimSpace(s.lab.Run("uname", "-r")))
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		fmt.Fprintf(&b, "| %s | %d |\n", what, s.counts[what])
	}
	for _, name := range slices.Sorted(maps.Keys(s.peaks)) {
		fmt.Fprintf(&b, "| most memory of the %s | %d MiB |\n", name, s.peaks[name]>>10)
	}
	b.WriteString("| I/O errors, mismatches, complaints of the kernel | 0 |\n| devices, records, sockets left | 0 |\n")
	if s.t.Failed() {
		return
	}
	fmt.Print(b.String())
	if dir := os.Getenv("AOE_CSI_RESULTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "summary.md"), []byte(b.String()), 0o644); err != nil {
			s.t.Error(err)
		}
	}
}
