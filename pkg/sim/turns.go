package sim

import (
	"context"
	"iter"
	"slices"
	"time"
)

// turns runs tasks one at a time, each a coroutine; it implements target.Turns.
type turns struct {
	sim         *Sim
	preemptible bool // a task that could go on may have to wait
	tasks       []*task
	current     *task
}

// task is one of them. Between its turns it waits for ready.
type task struct {
	next  func() (struct{}, bool)
	yield func(struct{}) bool
	ready func() bool
	back  time.Duration // when a task that could go on has a processor again; 0: it has not been taken off
}

func always() bool { return true }

// Go implements target.Turns.
func (t *turns) Go(f func()) {
	k := &task{ready: always}
	k.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		k.yield = yield
		f()
	})
	t.tasks = append(t.tasks, k)
}

// Await implements target.Turns.
func (t *turns) Await(ready func() bool) {
	k := t.current
	if !ready() {
		k.ready = ready
		k.yield(struct{}{})
		return
	}
	if t.preempt(k) {
		k.yield(struct{}{})
	}
}

// sleep lets time pass, or less of it if the task is woken by over.
func (t *turns) sleep(d time.Duration, over func() bool) {
	at := t.sim.now + d
	t.sim.wakeAt(at)
	t.Await(func() bool { return t.sim.now >= at || over() })
}

// preempt sometimes has a task wait for its turn although what it waited for is there, and its own by now.
func (t *turns) preempt(k *task) bool {
	if !t.preemptible || k.back > 0 {
		k.back = 0
		return false
	}
	d := t.sim.absence()
	if d == 0 {
		return false
	}
	back := t.sim.now + d
	k.back, k.ready = back, func() bool { return t.sim.now >= back }
	t.sim.wakeAt(back)
	return true
}

// run gives turns, in an order that chance decides, until every task waits; it says whether there was any.
func (t *turns) run() (any bool) {
	for again := true; again && t.sim.err == nil; {
		again = false
		first := 0
		if len(t.tasks) > 1 {
			first = t.sim.dice.IntN(len(t.tasks))
		}
		for i := range t.tasks {
			at := (first + i) % len(t.tasks)
			k := t.tasks[at]
			if k == nil || !k.ready() || t.preempt(k) {
				continue
			}
			again, any = true, true
			t.current = k
			_, more := k.next()
			t.current = nil
			if !more {
				t.tasks[at] = nil
			}
		}
		if again {
			t.tasks = slices.DeleteFunc(t.tasks, func(k *task) bool { return k == nil })
		}
	}
	return any
}

// deadline is a context that ends when the virtual clock says so. It wakes nobody: who waits looks at Err.
type deadline struct {
	context.Context
	sim *Sim
	at  time.Duration
}

// Err implements context.Context.
func (d *deadline) Err() error {
	if d.sim.now >= d.at {
		return context.DeadlineExceeded
	}
	return nil
}

// Timeout implements target.Turns.
func (t *turns) Timeout(d time.Duration) (context.Context, context.CancelFunc) {
	at := t.sim.now + d
	t.sim.wakeAt(at)
	return &deadline{Context: context.Background(), sim: t.sim, at: at}, func() {}
}
