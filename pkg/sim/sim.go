package sim

import (
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// Options say which run.
type Options struct {
	Seed uint64
	// Trace, if not nil, gets a line for each event.
	Trace io.Writer
}

// Summary is what happened in a run.
type Summary struct {
	Requests, Frames int
	Time             time.Duration // virtual
}

// Sim is one run.
type Sim struct {
	dice  *rand.Rand
	trace io.Writer
	err   error
	now   time.Duration
	plan  plan

	timers   timers
	net      *linktest.Network
	storage  *storage
	lives    []*life // with tasks
	nodes    []*node
	tasks    *turns // of the world: users, control plane, faults
	model    *model
	received [64][]byte

	incarnations uint64
	volumes      int
	healed       bool // no new faults, and what is broken gets well
	ended        bool // nothing new is begun
	running      int  // tasks of the world
}

// Run runs a seed; the error is the first thing that was wrong.
func Run(o Options) (Summary, error) {
	s := &Sim{dice: rand.New(rand.NewPCG(o.Seed, 0x73696d)), trace: o.Trace}
	s.plan = s.makePlan()
	s.tracef("plan: %+v; %s", s.plan, s.plan.faults.String())
	s.net = linktest.NewNetwork(int64(o.Seed), s.plan.profile)
	s.net.SetMangler(s.mangle)
	if s.trace != nil {
		s.net.SetTap(s.tap)
	}
	s.tasks = &turns{sim: s}
	s.model = newModel(s)
	s.storage = &storage{sim: s, disk: newDisk(s), mac: aoe.MAC{0x02, 0x77, 0, 0, 0, 0x77}}
	s.build()
	s.play()
	s.close()
	sum := Summary{Requests: len(s.model.ops), Frames: s.net.Stats().Sent, Time: s.now}
	if s.err != nil {
		s.err = fmt.Errorf("seed %d: at %v: %w", o.Seed, s.now, s.err)
	}
	return sum, s.err
}

// Quiet has the product's log thrown away: runs are many.
func Quiet() { klog.SetLogger(klog.Logger{}) }

// build makes the nodes and begins the tasks.
func (s *Sim) build() {
	for i := range s.plan.nodes {
		n := &node{sim: s, name: fmt.Sprintf("node-%c", 'a'+i), index: i}
		for k := range s.plan.links {
			l := s.net.Link(aoe.MAC{0x02, byte(0x11 * (i + 1)), 0, 0, byte(k), byte(0x0f << k)})
			n.links, n.up = append(n.links, l), append(n.up, true)
		}
		s.nodes = append(s.nodes, n)
	}
	s.storage.start()
	for i := range s.plan.volumes {
		s.begin(func() { s.control(uint8(1 << i)) })
	}
	for _, fault := range s.plan.faults {
		s.begin(func() { fault.run(s) })
	}
}

// begin begins a task of the world.
func (s *Sim) begin(f func()) {
	s.running++
	s.tasks.Go(func() {
		f()
		s.running--
	})
}

// play lets time pass: the time of faults, that of healing, and the end.
func (s *Sim) play() {
	s.until(s.plan.duration, func() bool { return false })
	s.tracef("---- healing")
	s.healed = true
	s.heal()
	s.until(2*time.Second, func() bool { return false })
	s.tracef("---- ending")
	s.ended = true
	if !s.until(10*time.Minute, func() bool { return s.running == 0 }) {
		s.stuck()
	}
}

// until lets time pass until done says so, or for a span.
func (s *Sim) until(span time.Duration, done func() bool) bool {
	limit := s.now + span
	for s.err == nil {
		s.settle()
		if done() {
			return true
		}
		next := s.next()
		if next > limit {
			s.now = limit
			s.net.Advance(linktest.Epoch.Add(s.now))
			return false
		}
		s.now = max(s.now, next)
		for len(s.timers) > 0 && s.timers[0] <= s.now {
			heap.Pop(&s.timers)
		}
		s.net.Advance(linktest.Epoch.Add(s.now))
	}
	return false
}

// settle lets everybody act until nothing is left to do at this moment.
func (s *Sim) settle() {
	for again := true; again && s.err == nil; {
		again = s.tasks.run()
		for i := 0; i < len(s.lives); i++ {
			l := s.lives[i]
			again = l.turns.run() || again
			if len(l.turns.tasks) == 0 {
				s.lives = append(s.lives[:i], s.lives[i+1:]...)
				i--
			}
		}
		for _, n := range s.nodes {
			again = n.poll() || again
		}
	}
	if err := s.net.Err(); err != nil {
		s.fail("network: %v", err)
	}
}

// next is when something happens.
func (s *Sim) next() time.Duration {
	next := time.Duration(1<<63 - 1)
	if len(s.timers) > 0 {
		next = s.timers[0]
	}
	if at, ok := s.net.Next(); ok {
		next = min(next, at.Sub(linktest.Epoch))
	}
	for _, n := range s.nodes {
		for _, d := range n.devices {
			if d.core != nil {
				next = min(next, d.core.Next())
			}
		}
	}
	return next
}

// stuck says who did not come to an end.
func (s *Sim) stuck() {
	for _, n := range s.nodes {
		for _, d := range n.devices {
			for _, r := range d.pending {
				st := "no process"
				if d.core != nil {
					st = fmt.Sprintf("%+v, paths %+v", d.core.State(), d.core.Paths(nil))
				}
				s.fail("stuck: %s is not answered long after everything is well: %s", r.op, st)
			}
		}
	}
	if s.err == nil {
		s.fail("stuck: %d tasks do not end", s.running)
	}
}

// close gives all memory back.
func (s *Sim) close() {
	for _, n := range s.nodes {
		for _, d := range n.devices {
			d.release()
		}
	}
	s.storage.kill()
	failed := s.err
	s.err = nil
	for i := 0; len(s.lives) > 0 && i < 1000; i++ {
		for _, l := range s.lives {
			l.turns.run()
		}
		s.now += time.Second
		for i := 0; i < len(s.lives); i++ {
			if len(s.lives[i].turns.tasks) == 0 {
				s.lives = append(s.lives[:i], s.lives[i+1:]...)
				i--
			}
		}
	}
	if failed == nil && len(s.lives) > 0 {
		s.fail("target: a killed process has %d tasks that do not end", len(s.lives[0].turns.tasks))
	}
	for _, n := range s.nodes {
		for _, l := range n.links {
			_ = l.Close()
		}
	}
	if failed != nil {
		s.err = failed
	}
}

// fail notes what is wrong; the first counts, and ends the run.
func (s *Sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
		s.tracef("FAILED: %v", s.err)
	}
}

// tracef writes a line of the trace.
func (s *Sim) tracef(format string, args ...any) {
	if s.trace != nil {
		_, _ = fmt.Fprintf(s.trace, "%12.6f %s\n", s.now.Seconds(), fmt.Sprintf(format, args...))
	}
}

// wakeAt makes sure that time does not pass t unnoticed.
func (s *Sim) wakeAt(t time.Duration) { heap.Push(&s.timers, t) }

// timers is a heap of times.
type timers []time.Duration

func (t timers) Len() int           { return len(t) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t timers) Less(i, j int) bool { return t[i] < t[j] }

// Push implements heap.Interface.
func (t *timers) Push(x any) { *t = append(*t, x.(time.Duration)) }

// Pop implements heap.Interface.
func (t *timers) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
	return x
}
