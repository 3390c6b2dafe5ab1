package attach

import (
	"errors"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const sectorBytes = 512

// loop is what a pump needs of its initiator.Shard.
type loop interface {
	Watch(fd int, h initiator.Handler) error
	WatchReads(fd int, on bool) error
	WatchWrites(fd int, on bool) error
	Unwatch(fd int)
}

// submitter is what a pump needs of its initiator.Device.
type submitter interface {
	Submit(r *initiator.Request)
}

// pump moves requests from a front end's queue to a target and their outcomes back. It runs on the shard's thread
// only (but for gone) and allocates nothing after it was made.
//
//	Ready: Poll → Submit …   Complete (from the target) → queue.Complete …   BeforeSleep: Flush, and Poll again if memory was short
type pump struct {
	name   string // for logs
	ended  func() // called once when the kernel's end is gone; must not block
	loop   loop
	queue  blockdev.Queue
	target submitter
	fd     int

	requests  []initiator.Request // by blockdev.Request.Index
	origins   []*blockdev.Request // what each of them stands for
	serials   []uint64            // when each was submitted, in the order of submissions; 0: it is not out
	submitted uint64              // how many were
	batch     []*blockdev.Request // scratch
	dirty     bool                // completions wait for Flush
	freed     bool                // completions since the queue was last polled for want of memory
	polling   bool                // within poll: Flush comes after
	paused    bool                // reading is paused: the queue is stalled
	watching  bool                // the loop calls us
	refusing  bool                // new requests fail at once: what is outstanding was given up
	gone      atomic.Bool         // the kernel's end is; for other goroutines
	abandoned bool                // completions go nowhere: another server gets the requests again
}

// newPump connects a queue to a target. watch starts it.
func newPump(name string, l loop, queue blockdev.Queue, target submitter, ended func()) *pump {
	p := &pump{
		name: name, ended: ended, loop: l, queue: queue, target: target, fd: queue.FD(),
		requests: make([]initiator.Request, queue.Depth()),
		origins:  make([]*blockdev.Request, queue.Depth()),
		serials:  make([]uint64, queue.Depth()),
		batch:    make([]*blockdev.Request, 0, queue.Depth()),
	}
	for i := range p.requests {
		p.requests[i].Done, p.requests[i].Index = p, i
	}
	return p
}

// watch has the loop call the pump.
func (p *pump) watch() error {
	if err := p.loop.Watch(p.fd, p); err != nil {
		return err
	}
	p.watching = true
	p.flush() // tells the queue which thread is its own, before anybody starts the device
	return nil
}

// unwatch ends that. Idempotent. Requests that are outstanding still complete.
func (p *pump) unwatch() {
	if p.watching {
		p.watching = false
		p.loop.Unwatch(p.fd)
	}
}

// abandon ends everything between the pump and its queue: what the target still completes is not answered.
func (p *pump) abandon() {
	p.unwatch()
	p.abandoned = true
}

// refuse makes new requests fail from now on.
func (p *pump) refuse() { p.refusing = true }

// oldest is the serial of the request that is out longest; 0: none is.
func (p *pump) oldest() uint64 {
	first := uint64(0)
	for _, serial := range p.serials {
		if serial != 0 && (first == 0 || serial < first) {
			first = serial
		}
	}
	return first
}

// Ready implements initiator.Handler.
func (p *pump) Ready(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		p.dirty = true
	}
	if events&^unix.EPOLLOUT != 0 {
		p.poll()
	}
	if events&unix.EPOLLHUP != 0 && p.watching && p.queue.Stalled() {
		p.end() // what was left behind will never be read, and the event would come for ever
	}
}

// BeforeSleep implements initiator.Handler.
func (p *pump) BeforeSleep() {
	if !p.dirty {
		return
	}
	more := p.flush()
	// Only answers that are out give memory back: without one a stalled queue would say the same again. If the kernel did not
	// take them all, it says when it can.
	for p.freed && !more && p.watching && p.queue.Stalled() {
		p.freed = false
		p.poll()
		more = p.flush()
	}
}

// poll submits what has arrived.
func (p *pump) poll() {
	if !p.watching {
		return
	}
	p.polling = true
	batch, err := p.queue.Poll(p.batch[:0])
	for _, r := range batch {
		p.submit(r)
	}
	p.polling = false
	p.dirty = true // the queue may have refused requests by itself
	p.pause(p.queue.Stalled())
	if err != nil {
		// The kernel's end is gone: an orderly Stop, or somebody else disconnected the device.
		klog.V(2).InfoS("Front end's queue ended", "volume", p.name, "reason", err)
		p.unwatch()
		p.flush()
		p.end()
	}
}

// end notes that the kernel's end is gone.
func (p *pump) end() {
	p.unwatch()
	if p.gone.CompareAndSwap(false, true) {
		p.ended()
	}
}

// pause keeps a readable descriptor from waking the loop all the time while nothing can be read from it.
func (p *pump) pause(on bool) {
	if p.paused == on || !p.watching {
		return
	}
	if err := p.loop.WatchReads(p.fd, !on); err != nil {
		klog.ErrorS(err, "Could not pause a queue", "volume", p.name)
		return
	}
	p.paused = on
}

func (p *pump) submit(r *blockdev.Request) {
	q := &p.requests[r.Index]
	p.origins[r.Index] = r
	p.submitted++
	p.serials[r.Index] = p.submitted
	q.FUA, q.LBA, q.Sectors, q.Data, q.Err = r.FUA, r.Offset/sectorBytes, r.Length/sectorBytes, r.Data, nil
	q.Pages = r.Pages
	switch r.Op {
	case blockdev.OpRead:
		q.Op = initiator.OpRead
	case blockdev.OpWrite:
		q.Op = initiator.OpWrite
	case blockdev.OpFlush:
		q.Op, q.LBA, q.Sectors = initiator.OpFlush, 0, 0
	case blockdev.OpTrim:
		q.Op = initiator.OpTrim
	case blockdev.OpWriteZeroes:
		q.Op = initiator.OpTrim // announced only where that makes zeroes
		if r.FUA {
			q.Err = initiator.ErrUnsupported
		}
	}
	if p.refusing {
		q.Err = initiator.ErrIO
	}
	if q.Err != nil {
		p.Complete(q)
		return
	}
	p.target.Submit(q)
}

// Complete implements initiator.Completer.
func (p *pump) Complete(q *initiator.Request) {
	p.serials[q.Index] = 0
	if p.abandoned {
		return
	}
	p.queue.Complete(p.origins[q.Index], errnoOf(q.Err))
	p.dirty, p.freed = true, true
	if !p.watching && !p.polling {
		p.flush() // nobody calls BeforeSleep any more
	}
}

// flush hands completions over; more says that the kernel did not take all of them now.
func (p *pump) flush() (more bool) {
	p.dirty = false
	more, err := p.queue.Flush()
	if err != nil {
		p.end()
		return false
	}
	if p.watching {
		if err := p.loop.WatchWrites(p.fd, more); err != nil {
			klog.ErrorS(err, "Could not watch a queue", "volume", p.name)
			p.dirty = more
		}
	}
	return more
}

// errnoOf is what the block layer hears.
func errnoOf(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, initiator.ErrReadOnly):
		return syscall.EPERM
	case errors.Is(err, initiator.ErrUnsupported):
		return syscall.EOPNOTSUPP
	default:
		return syscall.EIO
	}
}
