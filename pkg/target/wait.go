package target

import (
	"context"
	"sync"
	"time"
)

// A shelf waits nowhere but here: for locks that are held over disk I/O, for queues, for jobs and for time. With Turns a wait is a turn
// given away; without them it is the scheduler's business.

// newLock makes a lock that may be held over a wait.
func newLock(t Turns) sync.Locker {
	if t == nil {
		return new(sync.Mutex)
	}
	return &turnLock{turns: t}
}

type turnLock struct {
	turns Turns
	held  bool
}

// Lock implements sync.Locker.
func (l *turnLock) Lock() {
	l.turns.Await(func() bool {
		free := !l.held
		l.held = true
		return free
	})
}

// Unlock implements sync.Locker.
func (l *turnLock) Unlock() { l.held = false }

// condition is a sync.Cond.
type condition interface {
	Wait()
	Broadcast()
}

func newCondition(h Host, l sync.Locker) condition {
	if h.Turns() == nil {
		return sync.NewCond(l)
	}
	return &turnCondition{host: h, locker: l}
}

type turnCondition struct {
	host   Host
	locker sync.Locker
	calls  int
}

// Wait implements condition. It returns when time passes, too, since who waits may look at a timeout.
func (c *turnCondition) Wait() {
	calls, since := c.calls, c.host.Now()
	c.locker.Unlock()
	defer c.locker.Lock()
	c.host.Turns().Await(func() bool { return c.calls != calls || !c.host.Now().Equal(since) })
}

// Broadcast implements condition.
func (c *turnCondition) Broadcast() { c.calls++ }

// group is tasks to wait for.
type group struct {
	turns   Turns
	wg      sync.WaitGroup
	running int // with turns
}

// Go begins a task of the group.
func (g *group) Go(task func()) {
	if g.turns == nil {
		g.wg.Go(task)
		return
	}
	g.running++
	g.turns.Go(func() {
		defer func() { g.running-- }()
		task()
	})
}

// Wait waits until all have ended.
func (g *group) Wait() {
	if g.turns == nil {
		g.wg.Wait()
		return
	}
	g.turns.Await(func() bool { return g.running == 0 })
}

// receive takes the next from a queue; false: the queue is closed and empty.
func receive(t Turns, queue <-chan *job) (j *job, ok bool) {
	if t != nil {
		return receiveInTurn(t, queue)
	}
	j, ok = <-queue
	return j, ok
}

// receiveInTurn is a function of its own so that receive allocates nothing.
func receiveInTurn(t Turns, queue <-chan *job) (j *job, ok bool) {
	t.Await(func() bool {
		select {
		case j, ok = <-queue:
			return true
		default:
			return false
		}
	})
	return j, ok
}

// errand waits for what a LUN's clerk has to do: a request or, with a nil job, a cache epoch to store. False: nothing any more.
func (l *lun) errand(retry context.Context) (j *job, ok bool) {
	if t := l.shelf.turns; t != nil {
		t.Await(func() bool {
			select {
			case j, ok = <-l.requests:
				return true
			default:
			}
			select {
			case _, ok = <-l.kick:
				return true
			default:
				ok = retry.Err() != nil
				return ok
			}
		})
		return j, ok
	}
	select {
	case j, ok = <-l.requests:
		return j, ok
	case <-l.kick:
	case <-retry.Done():
	}
	return nil, true
}

// timeout is context.WithTimeout.
func (s *Shelf) timeout(d time.Duration) (context.Context, context.CancelFunc) {
	if s.turns == nil {
		return context.WithTimeout(context.Background(), d)
	}
	return s.turns.Timeout(d)
}
