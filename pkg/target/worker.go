package target

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// job is a request on its way through a LUN: the frame holds the request, then the answer. A port owns it, lends it to a LUN's
// queue, and gets it back by finish, whatever happens.
type job struct {
	port    *port
	frame   *pool.Frame
	lun     *lun
	session *session // nil on open LUNs
	src     aoe.MAC
	length  int    // of the request, in bytes of the frame's buffer
	rest    []byte // of the request, borrowed from the port's link
	rules   uint64 // the LUN's when the job was last judged
	sectors uint64 // the LUN's size
	counter uint32 // with tracked: the tag's
	tracked bool   // the session's window waits for the outcome
	reply   int    // length of the answer in bytes; 0: none
}

// fill copies what was borrowed of the request.
func (j *job) fill() {
	j.length += copy(j.frame.Buf()[j.length:], j.rest)
	j.rest = nil
}

func (j *job) request() aoe.Frame { return aoe.Frame(j.frame.Buf()[:j.length]) }

// refuse makes the answer an AoE error.
func (j *job) refuse(code aoe.ErrorCode) {
	buf := j.frame.Buf()
	aoe.PutReply(buf, j.request(), j.port.mac, j.lun.addr(), code)
	j.reply = min(j.length, aoe.ATALen)
}

// work runs jobs of one queue until stop; i is the worker's number in ticks.
func (l *lun) work(i int, queue <-chan *job) {
	for {
		j, ok := receive(l.shelf.turns, queue)
		if !ok {
			return
		}
		if l.begin(i, j) {
			l.done(i, j, l.execute(j))
		}
		j.port.finish(j)
	}
}

// begin judges a job again, since rules may have changed while it was queued, and marks the worker as busy.
func (l *lun) begin(i int, j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.judgeAgain(j) {
		l.left(i)
		return false
	}
	j.rules, j.sectors = l.rules, l.sectors
	l.ticks[i]++
	return true
}

// judgeAgain says whether a job that was queued is still to be run. The caller holds mu.
func (l *lun) judgeAgain(j *job) bool {
	if j.rules == l.rules || l.stillMayRun(j) {
		return !l.unmarked
	}
	if j.tracked {
		j.session.window.set(j.counter, unseen) // a copy from an address that may is executed
	}
	return false
}

// left notes that a job has left the queue of worker i. The caller holds mu.
func (l *lun) left(i int) {
	if i == lunWorkers {
		l.behind--
	}
}

// stillMayRun judges a queued job by the rules of now. One that may not has its answer, if its sender gets any. The caller holds mu.
func (l *lun) stillMayRun(j *job) bool {
	if !l.visible(j.src) {
		return false
	}
	code := l.mayRun(j.src, j.session)
	if code != aoe.NoError {
		j.refuse(code)
	}
	return code == aoe.NoError
}

// done records the outcome and tells who waits for older jobs.
func (l *lun) done(i int, j *job, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ticks[i]++
	if j.tracked {
		j.session.window.set(j.counter, o)
	}
	l.left(i)
	if l.waiting > 0 {
		l.finished.Broadcast()
	}
}

// awaitInline waits until what ports serve themselves is done, if they judged it before; they do it in no time.
func (l *lun) awaitInline() {
	l.inline.Lock()
	l.inline.Unlock() //nolint:staticcheck // to have waited was all
}

// drain waits until every job that runs now is done. The caller has changed the rules before, so that queued ones
// are judged by the new ones, and holds control but not mu. It never runs in a worker.
func (l *lun) drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.finished.Broadcast()
	})
	defer stop()
	l.awaitInline()
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.ticks
	l.waiting++
	defer func() { l.waiting-- }()
	for i, tick := range before {
		for tick%2 == 1 && l.ticks[i] == tick {
			if err := ctx.Err(); err != nil {
				return err
			}
			l.finished.Wait()
		}
	}
	return nil
}

// loseCache records that acknowledged data may be gone. The caller holds syncing, so that no flush succeeds before. The clerk
// stores the new epoch; nothing is served until it is stored. The kernel has told of the loss and will not do so again: the mark
// is for a process that starts after this one was killed before the epoch was stored.
func (l *lun) loseCache(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.shelf.media.Mark(l.uuid) // under mu, so that save does not take it for the mark of an earlier loss
	if err != nil {
		klog.ErrorS(err, "Loss not marked", "lun", l.addr(), "generation", l.generation)
	}
	klog.ErrorS(cause, "Data not durable, acknowledged writes may be lost", "lun", l.addr(), "generation", l.generation)
	l.cacheEpoch = l.shelf.newCacheEpoch(l.cacheEpoch)
	l.flushLost, l.offline = true, true
	l.unmarked = l.unmarked || err != nil
	if !l.closed {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}

// mayTell says whether a failed flush may be answered: if only this process knows of the loss, and the one answer does not arrive, the
// loss would be forgotten with the process.
func (l *lun) mayTell() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.unmarked
}

// storeRetry is the pause before a cache epoch that could not be stored is tried again.
const storeRetry = time.Second

// serveRequests is the LUN's clerk: it runs what changes the record, one after the other, until stop.
func (l *lun) serveRequests() {
	retry, stop := context.Background(), func() {}
	for {
		j, ok := l.errand(retry)
		if !ok {
			stop()
			return
		}
		if j != nil {
			l.serve(j)
			j.port.finish(j)
			continue
		}
		stop()
		retry, stop = context.Background(), func() {}
		if err := l.storeCacheEpoch(); err != nil {
			klog.ErrorS(err, "Cache epoch not stored, the LUN is not served until it is", "lun", l.addr())
			retry, stop = l.shelf.timeout(storeRetry)
		}
	}
}

// storeCacheEpoch makes a lost cache known for good.
func (l *lun) storeCacheEpoch() error {
	l.control.Lock()
	defer l.control.Unlock()
	l.mu.Lock()
	needed := l.offline && !l.closed
	l.mu.Unlock()
	if !needed {
		return nil
	}
	return l.save(func(*lunRecord) {})
}
