package initiator

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// storm submits random requests, none of which overlaps a pending one, and knows what the disk must hold.
type storm struct {
	w          *world
	dice       *rand.Rand
	want       []byte
	busy       []bool // sectors with a pending request
	pending    int
	left       int
	errs       []error
	wrong      int
	generation byte
	pages      *filePages // of every other request
}

// stormRequest is one of them, with the data that a read must bring.
type stormRequest struct {
	Request
	storm  *storm
	data   []byte
	expect []byte
}

// Complete implements Completer.
func (r *stormRequest) finish() {
	s := r.storm
	s.pending--
	if r.Err != nil {
		s.errs = append(s.errs, fmt.Errorf("%s of %d at %d: %w", r.Op, r.Sectors, r.LBA, r.Err))
	}
	if r.Pages != nil && r.Op == OpRead {
		s.pages.get(r.data, r.LBA)
	}
	if r.Op == OpRead && r.Err == nil && !bytes.Equal(r.data, r.expect) {
		s.wrong++
	}
	if r.Pages != nil {
		s.pages.put(bytes.Repeat([]byte{0xbd}, len(r.data)), r.LBA) // whose they are next
	}
	for i := range r.Sectors {
		s.busy[r.LBA+uint64(i)] = false
	}
}

type finisher struct{ r *stormRequest }

func (f finisher) Complete(*Request) { f.r.finish() }

func newStorm(w *world, seed uint64, requests int) *storm {
	sectors := len(w.target.disk) / aoe.SectorSize
	return &storm{w: w, dice: rand.New(rand.NewPCG(seed, 2)), want: make([]byte, len(w.target.disk)), busy: make([]bool, sectors), left: requests,
		pages: newFilePages(w.t)}
}

// submit adds one request, if it finds a place.
func (s *storm) submit() {
	// A small part of the disk, so that places are written again and again.
	n := 1 + s.dice.IntN(40)
	lba := s.dice.IntN(256)
	for i := range n {
		if s.busy[lba+i] {
			return
		}
	}
	for i := range n {
		s.busy[lba+i] = true
	}
	s.left--
	s.pending++
	r := &stormRequest{storm: s}
	r.data = make([]byte, n*aoe.SectorSize)
	r.Request = Request{LBA: uint64(lba), Sectors: uint32(n), Data: r.data, Done: finisher{r}}
	at := s.want[lba*aoe.SectorSize:][:len(r.data)]
	switch s.dice.IntN(8) {
	case 0, 1, 2, 3:
		s.generation++
		r.Op = OpWrite
		for i := range r.data {
			r.data[i] = s.generation ^ byte(i>>9)
		}
		copy(at, r.data)
	case 4:
		r.Op, r.Sectors, r.Data = OpFlush, 0, nil
		for i := range n {
			s.busy[lba+i] = false
		}
	default:
		r.Op = OpRead
		r.expect = bytes.Clone(at)
	}
	if r.Op != OpFlush && s.dice.IntN(2) == 0 {
		s.pages.put(r.data, r.LBA)
		r.Data, r.Pages = nil, pagesFrom{s.pages, r.LBA}
	}
	s.w.core.Submit(s.w.now, &r.Request)
}

// run keeps depth requests pending until all are done, and has disturb called now and then.
func (s *storm) run(depth int, disturb func(step int)) {
	limit := s.w.now + time.Hour
	for step := 0; s.left > 0 || s.pending > 0; step++ {
		for tries := 0; s.left > 0 && s.pending < depth && tries < 10; tries++ {
			s.submit()
		}
		if disturb != nil {
			disturb(step)
		}
		if !s.w.step(limit) {
			s.w.t.Fatalf("%d requests were never completed; state %+v, paths %+v", s.pending, s.w.core.State(), s.w.core.Paths(nil))
		}
	}
	for _, err := range s.errs {
		s.w.t.Error(err)
	}
	if s.wrong > 0 {
		s.w.t.Errorf("%d reads brought other data than were written", s.wrong)
	}
	// What is still on the wire may not change anything any more.
	s.w.run(3 * time.Second)
	if !bytes.Equal(s.w.target.disk, s.want) {
		s.w.t.Error("the disk does not hold what was written last")
	}
}

// rough has everything but what a foreign target cannot be protected from: copies that the network makes by itself.
var rough = linktest.Profile{Delay: 100 * time.Microsecond, Jitter: time.Millisecond, Loss: 0.02, Reorder: 0.05, ReorderBy: 80 * time.Millisecond, ReleaseDelay: 5 * time.Millisecond}

func TestStorm(t *testing.T) {
	const requests = 1000
	for _, tc := range []struct {
		name    string
		profile func(*linktest.Profile)
		foreign bool
	}{
		{"managed, quiet", func(p *linktest.Profile) { *p = lan }, false},
		{"managed, rough", func(p *linktest.Profile) { p.Duplicate = 0.05 }, false},
		{"managed, rough, small frames", func(p *linktest.Profile) { p.Duplicate = 0.05; p.MTU = 1500 }, false},
		{"foreign, quiet", func(p *linktest.Profile) { *p = lan }, true},
		{"foreign, rough", func(*linktest.Profile) {}, true},
		{"foreign, rough, small frames", func(p *linktest.Profile) { p.MTU = 1500 }, true},
	} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s, seed %d", tc.name, seed), func(t *testing.T) {
				profile := rough
				tc.profile(&profile)
				w := newWorld(t, int64(seed), profile, func(c *CoreConfig) {
					if tc.foreign {
						c.Generation = ""
					}
				})
				if tc.foreign {
					w.target.asVblade()
				}
				w.target.service = 2 * time.Millisecond
				w.attach()
				s := newStorm(w, seed, requests)
				s.run(32, nil)
				if profile.Loss > 0 && w.core.Stats().Retransmits == 0 {
					t.Error("nothing was ever retransmitted")
				}
			})
		}
	}
}

// TestStormWithRestarts kills the target again and again; what it had not executed is lost with it.
func TestStormWithRestarts(t *testing.T) {
	for seed := range uint64(4) {
		for _, foreign := range []bool{false, true} {
			t.Run(fmt.Sprintf("foreign %v, seed %d", foreign, seed), func(t *testing.T) {
				w := newWorld(t, int64(seed), rough, func(c *CoreConfig) {
					if foreign {
						c.Generation = ""
					}
				})
				if foreign {
					w.target.asVblade()
				}
				w.target.service = time.Millisecond
				w.attach()
				s := newStorm(w, seed, 1200)
				s.run(32, func(step int) {
					switch step % 2000 {
					case 999:
						w.target.restart(false)
						w.target.off = true
						w.run(time.Duration(seed) * 3 * time.Second)
						w.target.off = false
						if seed%2 == 0 {
							w.target.advertise()
						}
					}
				})
				if !foreign && w.core.State().Incarnation == 100 {
					t.Error("no session was opened again")
				}
				if w.core.State().Lost {
					t.Error("flushes fail though nothing was lost")
				}
			})
		}
	}
}

// TestStormOverTwoPaths takes interfaces down, one at a time.
func TestStormOverTwoPaths(t *testing.T) {
	for seed := range uint64(4) {
		for _, foreign := range []bool{false, true} {
			t.Run(fmt.Sprintf("foreign %v, seed %d", foreign, seed), func(t *testing.T) {
				w := newWorld(t, int64(seed), rough, func(c *CoreConfig) {
					if foreign {
						c.Generation = ""
					}
				})
				if foreign {
					w.target.asVblade()
				}
				w.plug(ourMAC2)
				w.attach()
				s := newStorm(w, seed, 1500)
				s.run(32, func(step int) {
					switch step % 1500 {
					case 400:
						w.net.Block(ourMAC, targetMAC)
					case 700:
						w.net.Unblock(ourMAC, targetMAC)
					case 1000:
						w.net.Block(targetMAC, ourMAC2)
					case 1300:
						w.net.Unblock(targetMAC, ourMAC2)
					}
				})
				used := 0
				for _, p := range w.core.Paths(nil) {
					if p.State == PathUp {
						used++
					}
				}
				if used == 0 {
					t.Error("no path is up")
				}
			})
		}
	}
}
