package sim

import (
	"strings"
	"time"
)

// fault is something that goes wrong again and again until the world is healed.
type fault struct {
	name    string
	managed bool // not with volumes that have no sessions: they cannot be protected from it
	run     func(s *Sim)
}

// faultList shows names in the plan.
type faultList []*fault

// String implements fmt.Stringer.
func (l faultList) String() string {
	var names []string
	for _, f := range l {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

var faults = faultList{
	{name: "target killed", run: func(s *Sim) {
		s.again(func() { s.storage.kill() }, s.storage.up)
	}},
	{name: "power cut", managed: true, run: func(s *Sim) {
		s.again(func() { s.storage.cutPower() }, s.storage.up)
	}},
	{name: "target stopped", run: func(s *Sim) {
		s.again(func() { s.storage.stop(s.tasks) }, s.storage.up)
	}},
	{name: "fdatasync fails", managed: true, run: func(s *Sim) {
		s.again(func() { s.storage.disk.failSync = true }, func() { s.storage.disk.failSync = false })
	}},
	{name: "the last fdatasync of a process fails", managed: true, run: func(s *Sim) {
		s.again(func() {
			s.storage.disk.failSync = true
			s.storage.stop(s.tasks)
		}, func() {
			s.storage.disk.failSync = false
			s.storage.up()
		})
	}},
	{name: "records fail", run: func(s *Sim) {
		s.again(func() { s.storage.disk.failUpdates = 1 + s.dice.IntN(3) }, func() { s.storage.disk.failUpdates = 0 })
	}},
	{name: "initiator killed", run: func(s *Sim) {
		var n *node
		s.again(func() { n = s.someNode(); n.crash() }, func() { n.recover() })
	}},
	{name: "both ends killed", managed: true, run: func(s *Sim) {
		s.again(func() {
			n := s.someNode()
			n.crash()
			s.tasks.sleep(time.Duration(s.dice.IntN(200))*time.Millisecond, s.failed)
			n.recover()
			s.tasks.sleep(time.Duration(s.dice.IntN(300))*time.Millisecond, s.failed)
			if !s.healed {
				s.storage.cutPower()
			}
		}, s.storage.up)
	}},
	{name: "interface down", run: func(s *Sim) {
		var n *node
		var i int
		s.again(func() { n = s.someNode(); i = s.dice.IntN(len(n.links)); n.setUp(i, false) }, func() { n.setUp(i, true) })
	}},
	{name: "one way lost", run: func(s *Sim) {
		var from, to [6]byte
		s.again(func() {
			n := s.someNode()
			from, to = n.links[s.dice.IntN(len(n.links))].MAC(), s.storage.mac
			if s.dice.IntN(2) == 0 {
				from, to = to, from
			}
			s.tracef("network: nothing gets from %x to %x", from, to)
			s.net.Block(from, to)
		}, func() { s.net.Unblock(from, to) })
	}},
	{name: "small frames only", run: func(s *Sim) {
		s.again(func() {
			p := s.plan.profile
			p.PathMTU = []int{1500, 1100, 4200}[s.dice.IntN(3)]
			s.tracef("network: path MTU %d", p.PathMTU)
			s.net.SetProfile(p)
		}, func() { s.net.SetProfile(s.plan.profile) })
	}},
}

// again breaks and mends; breaks and pauses are short mostly, and sometimes longer than any timeout.
func (s *Sim) again(broken, mend func()) {
	until := func() bool { return s.healed || s.err != nil }
	for {
		s.tasks.sleep(time.Duration(s.dice.Int64N(int64(3*time.Second))), until)
		if until() {
			return
		}
		broken()
		span := time.Duration(s.dice.IntN(300)) * time.Millisecond
		if s.dice.IntN(4) == 0 {
			span = time.Duration(s.dice.IntN(8000)) * time.Millisecond
		}
		s.tasks.sleep(span, until)
		mend()
	}
}

func (s *Sim) someNode() *node { return s.nodes[s.dice.IntN(len(s.nodes))] }

// up begins a process if there is none.
func (h *storage) up() {
	if h.life == nil {
		h.start()
	}
}

// heal ends all trouble in the network; tasks mend what they broke.
func (s *Sim) heal() {
	p := s.plan.profile
	p.Loss, p.Duplicate, p.Reorder, p.PathMTU = 0, 0, 0, 0
	s.plan.profile = p
	s.net.SetProfile(p)
}
