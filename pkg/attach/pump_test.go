package attach

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// scriptQueue is a queue without a kernel: the test says what Poll and Flush return.
type scriptQueue struct {
	requests  []blockdev.Request
	in        []*blockdev.Request
	pollErr   error
	stalled   bool // until a flush
	full      bool // Flush says more
	completed []string
	flushed   int
}

func newScriptQueue(depth int) *scriptQueue {
	q := &scriptQueue{requests: make([]blockdev.Request, depth)}
	for i := range q.requests {
		q.requests[i].Index = i
	}
	return q
}

func (q *scriptQueue) FD() int       { return 42 }
func (q *scriptQueue) Depth() int    { return len(q.requests) }
func (q *scriptQueue) Stalled() bool { return q.stalled }

func (q *scriptQueue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	if q.stalled {
		return dst, nil
	}
	dst = append(dst, q.in...)
	q.in = q.in[:0]
	return dst, q.pollErr
}

func (q *scriptQueue) Complete(r *blockdev.Request, errno syscall.Errno) {
	if q.completed != nil {
		q.completed = append(q.completed, fmt.Sprintf("%d:%d", r.Index, errno))
	}
}

func (q *scriptQueue) Flush() (bool, error) {
	q.flushed++
	q.stalled = false
	return q.full, nil
}

// scriptLoop records what is watched.
type scriptLoop struct {
	watched, writes, reads bool
}

func (l *scriptLoop) Watch(int, initiator.Handler) error { l.watched, l.reads = true, true; return nil }
func (l *scriptLoop) WatchWrites(_ int, on bool) error   { l.writes = on; return nil }
func (l *scriptLoop) WatchReads(_ int, on bool) error    { l.reads = on; return nil }
func (l *scriptLoop) Unwatch(int)                        { l.watched = false }

// scriptTarget takes requests and completes them when the test says so.
type scriptTarget struct{ got []*initiator.Request }

func (s *scriptTarget) Submit(r *initiator.Request) { s.got = append(s.got, r) }

func (s *scriptTarget) finish(err error) {
	for _, r := range s.got {
		r.Err = err
		r.Done.Complete(r)
	}
	s.got = s.got[:0]
}

func newScript(t testing.TB) (*pump, *scriptQueue, *scriptLoop, *scriptTarget) {
	q, l, target := newScriptQueue(8), &scriptLoop{}, &scriptTarget{}
	q.completed = []string{}
	p := newPump("volume", l, q, target, func() {})
	if err := p.watch(); err != nil {
		t.Fatal(err)
	}
	return p, q, l, target
}

func TestPumpTranslates(t *testing.T) {
	data := make([]byte, 1024)
	tests := []struct {
		in   blockdev.Request
		want string
	}{
		{blockdev.Request{Op: blockdev.OpRead, Offset: 1 << 40, Length: 1024, Data: data}, "read false 2147483648 2 1024"},
		{blockdev.Request{Op: blockdev.OpWrite, Offset: 512, Length: 1024, Data: data, FUA: true}, "write true 1 2 1024"},
		{blockdev.Request{Op: blockdev.OpFlush, Offset: 512, Length: 512}, "flush false 0 0 0"},
		{blockdev.Request{Op: blockdev.OpTrim, Offset: 4096, Length: 1 << 30}, "trim false 8 2097152 0"},
		{blockdev.Request{Op: blockdev.OpWriteZeroes, Offset: 4096, Length: 8192}, "trim false 8 16 0"},
	}
	for _, tt := range tests {
		p, q, _, target := newScript(t)
		q.requests[3] = tt.in
		q.requests[3].Index = 3
		q.in = append(q.in, &q.requests[3])
		p.Ready(unix.EPOLLIN)
		r := target.got[0]
		if got := fmt.Sprintf("%v %v %d %d %d", r.Op, r.FUA, r.LBA, r.Sectors, len(r.Data)); got != tt.want {
			t.Errorf("%+v became %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestPumpErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{initiator.ErrIO, syscall.EIO},
		{fmt.Errorf("e7.1: %w", initiator.ErrLost), syscall.EIO},
		{initiator.ErrReadOnly, syscall.EPERM},
		{initiator.ErrUnsupported, syscall.EOPNOTSUPP},
		{errors.New("anything"), syscall.EIO},
	} {
		p, q, _, target := newScript(t)
		q.in = append(q.in, &q.requests[0])
		p.Ready(unix.EPOLLIN)
		target.finish(tt.err)
		if want := fmt.Sprintf("0:%d", tt.want); len(q.completed) != 1 || q.completed[0] != want {
			t.Errorf("%v completed as %v, want %s", tt.err, q.completed, want)
		}
	}
}

func TestPumpRefusesWhatNobodyCanDo(t *testing.T) {
	p, q, _, target := newScript(t)
	q.requests[1].Op, q.requests[1].FUA = blockdev.OpWriteZeroes, true
	q.in = append(q.in, &q.requests[1])
	p.Ready(unix.EPOLLIN)
	p.refuse()
	q.in = append(q.in, &q.requests[2])
	p.Ready(unix.EPOLLIN)
	if len(target.got) != 0 || fmt.Sprint(q.completed) != fmt.Sprintf("[1:%d 2:%d]", syscall.EOPNOTSUPP, syscall.EIO) {
		t.Errorf("completed %v, submitted %d", q.completed, len(target.got))
	}
}

func TestPumpFlushesOnceATurn(t *testing.T) {
	p, q, l, target := newScript(t)
	for i := range 4 {
		q.in = append(q.in, &q.requests[i])
	}
	p.Ready(unix.EPOLLIN)
	p.BeforeSleep()
	before := q.flushed
	target.finish(nil)
	p.BeforeSleep()
	p.BeforeSleep()
	if q.flushed != before+1 {
		t.Errorf("%d flushes for one batch of completions", q.flushed-before)
	}
	q.full = true
	q.in = append(q.in, &q.requests[0])
	p.Ready(unix.EPOLLIN)
	target.finish(nil)
	p.BeforeSleep()
	if !l.writes {
		t.Error("a full socket is not watched for writing")
	}
	q.full = false
	p.Ready(unix.EPOLLOUT)
	p.BeforeSleep()
	if l.writes {
		t.Error("an empty queue is watched for writing")
	}
}

// TestPumpGoesOnAfterAStall: input that stayed behind for want of memory is taken when memory came back, without a new event.
func TestPumpGoesOnAfterAStall(t *testing.T) {
	p, q, l, target := newScript(t)
	q.in = append(q.in, &q.requests[0])
	p.Ready(unix.EPOLLIN)
	q.stalled = true
	p.Ready(unix.EPOLLIN)
	if l.reads {
		t.Error("a stalled queue keeps waking the loop")
	}
	q.in = append(q.in, &q.requests[1])
	target.finish(nil)
	q.flushed = 0
	stallAgain := &stallingQueue{scriptQueue: q, stalls: 1}
	p.queue = stallAgain
	p.BeforeSleep()
	if len(target.got) != 1 || target.got[0].Index != 1 {
		t.Errorf("after memory came back %d requests were submitted", len(target.got))
	}
	if !l.reads {
		t.Error("the queue is not read any more")
	}
}

// stallingQueue stays stalled over a number of flushes, as when the memory that came back was not enough at once.
type stallingQueue struct {
	*scriptQueue
	stalls int
}

func (q *stallingQueue) Flush() (bool, error) {
	more, err := q.scriptQueue.Flush()
	q.stalled = q.stalls > 0
	return more, err
}

func (q *stallingQueue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	q.stalled = false
	q.stalls--
	return q.scriptQueue.Poll(dst)
}

// TestPumpDoesNotSpinWhileStalled: with all memory out and nothing answered the loop must get its turn.
func TestPumpDoesNotSpinWhileStalled(t *testing.T) {
	p, q, _, target := newScript(t)
	stuck := &stuckQueue{scriptQueue: q}
	p.queue = stuck
	q.in = append(q.in, &q.requests[0])
	p.Ready(unix.EPOLLIN)
	p.BeforeSleep()
	if stuck.polls > 1 {
		t.Errorf("polled %d times with nothing answered", stuck.polls)
	}
	target.finish(nil)
	p.BeforeSleep()
	if stuck.polls != 2 {
		t.Errorf("polled %d times, want once more after an answer", stuck.polls)
	}
}

// stuckQueue never has enough memory.
type stuckQueue struct {
	*scriptQueue
	polls int
}

func (*stuckQueue) Stalled() bool { return true }

func (q *stuckQueue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	if q.polls++; q.polls > 100 {
		panic("it spins")
	}
	return q.scriptQueue.Poll(dst)
}

// TestPumpGoesOnAfterAFullSocket: memory that comes back only when the kernel takes the rest of the answers is used, too.
func TestPumpGoesOnAfterAFullSocket(t *testing.T) {
	p, q, _, target := newScript(t)
	stuck := &stuckQueue{scriptQueue: q}
	p.queue = stuck
	q.in = append(q.in, &q.requests[0])
	p.Ready(unix.EPOLLIN)
	q.full = true
	target.finish(nil)
	p.BeforeSleep()
	polls := stuck.polls
	q.full = false
	p.Ready(unix.EPOLLOUT)
	p.BeforeSleep()
	if stuck.polls != polls+1 {
		t.Errorf("polled %d times after the answers were out, want once", stuck.polls-polls)
	}
}

func TestPumpEnds(t *testing.T) {
	p, q, l, target := newScript(t)
	q.in = append(q.in, &q.requests[0], &q.requests[1])
	q.pollErr = io.EOF
	p.Ready(unix.EPOLLIN | unix.EPOLLHUP)
	if l.watched {
		t.Error("a queue that ended is still watched")
	}
	if len(target.got) != 2 || !p.gone.Load() {
		t.Fatalf("%d requests before the end, gone %v", len(target.got), p.gone.Load())
	}
	before := q.flushed
	target.finish(nil)
	if len(q.completed) != 2 || q.flushed == before {
		t.Errorf("completed %v, flushed %d times: outstanding requests must be answered after the end", q.completed, q.flushed-before)
	}
}

func TestPumpEndsWhileStalled(t *testing.T) {
	p, q, l, _ := newScript(t)
	q.stalled = true
	p.Ready(unix.EPOLLIN)
	if !l.watched || l.reads {
		t.Fatalf("a stalled queue: watched %v, read %v", l.watched, l.reads)
	}
	p.Ready(unix.EPOLLHUP)
	if l.watched {
		t.Error("the hang-up of a stalled queue wakes the loop for ever")
	}
}

func TestPumpAbandoned(t *testing.T) {
	p, q, l, target := newScript(t)
	q.in = append(q.in, &q.requests[0])
	p.Ready(unix.EPOLLIN)
	before := q.flushed
	p.abandon()
	target.finish(initiator.ErrIO)
	if l.watched || len(q.completed) != 0 || q.flushed != before {
		t.Errorf("an abandoned pump answered: %v", q.completed)
	}
}

func TestPumpDoesNotAllocate(t *testing.T) {
	p, q, _, target := newScript(t)
	q.completed = nil
	step := func() {
		for i := range q.requests {
			q.in = append(q.in, &q.requests[i])
		}
		p.Ready(unix.EPOLLIN)
		p.BeforeSleep()
		target.finish(nil)
		p.BeforeSleep()
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations for %d requests", n, len(q.requests))
	}
}

// TestPumpNoticesTheEnd: however the kernel's end goes away, it is told of.
func TestPumpNoticesTheEnd(t *testing.T) {
	t.Run("while stalled", func(t *testing.T) {
		p, q, _, _ := newScript(t)
		p.queue = &stuckQueue{scriptQueue: q}
		p.Ready(unix.EPOLLHUP)
		if !p.gone.Load() || p.watching {
			t.Errorf("gone %v, watching %v", p.gone.Load(), p.watching)
		}
	})
	t.Run("at a flush", func(t *testing.T) {
		p, q, _, _ := newScript(t)
		p.queue = &brokenQueue{q}
		p.Ready(unix.EPOLLOUT)
		p.BeforeSleep()
		if !p.gone.Load() || p.watching {
			t.Errorf("gone %v, watching %v", p.gone.Load(), p.watching)
		}
	})
}

// brokenQueue has lost the kernel's end.
type brokenQueue struct{ *scriptQueue }

func (*brokenQueue) Flush() (bool, error) { return false, unix.EPIPE }
