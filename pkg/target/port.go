package target

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

const (
	// portFrames is how many requests of one link are worked on at once, at most; what exceeds it is dropped.
	portFrames = 1024
	// portInitial of them have memory from the start.
	portInitial = 64
	// portBytes bounds the memory of one link: a local one has large frames.
	portBytes = 16 << 20
	// portBatch is how many frames one turn of the loop receives: so few that the sender has answers to work on meanwhile.
	portBatch = 16
	// minFrame holds every answer of an in-band command: 185 directives, 247 reserved addresses, a full config string.
	minFrame = 1536
)

// port is the loop of one link. It alone touches the link, the pool and the lists below; workers hand jobs back through done.
type port struct {
	shelf   *Shelf
	link    link.Link
	mac     aoe.MAC
	pool    *pool.Pool
	sectors int // most that a frame of this link carries

	jobs     []job // by frame ID
	lent     int   // jobs that LUNs have
	rx       [portBatch][]byte
	out      []*pool.Frame
	finished chan *job // as long as jobs, so that a worker never waits
	news     chan *lun // to be advertised

	batch     *uring.Batch
	transfers []uring.Transfer
	staged    []*job // whose they are
	holding   []held

	waker *waker
	ready func() bool // for the waker; made once, since a method value allocates
	ctx   context.Context
}

// newPort makes the loop of a link, which it borrows until the port is closed; run ends when ctx does.
func newPort(ctx context.Context, s *Shelf, l link.Link) (*port, error) {
	w, err := s.newPortWaker(l)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", l.Name(), err)
	}
	size := max(minFrame, aoe.EthernetLen+l.MTU())
	frames := max(portInitial, min(portFrames, portBytes/size))
	frame, err := pool.New(pool.Config{FrameSize: size, Initial: portInitial, Max: frames})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve %s: %w", l.Name(), err), w.close())
	}
	p := &port{
		shelf: s, link: l, mac: l.MAC(), pool: frame, sectors: aoe.MaxSectors(l.MTU()),
		jobs:      make([]job, frames),
		out:       make([]*pool.Frame, 0, frames),
		finished:  make(chan *job, frames),
		news:      make(chan *lun, maxSlots),
		batch:     s.newBatch(l),
		transfers: make([]uring.Transfer, 0, portBatch),
		staged:    make([]*job, 0, portBatch),
		holding:   make([]held, 0, portBatch),
		waker:     w,
		ctx:       ctx,
	}
	p.ready = func() bool { return len(p.finished) > 0 || len(p.news) > 0 || p.ctx.Err() != nil }
	return p, nil
}

// newBatch makes what a port does cached I/O with.
func (s *Shelf) newBatch(l link.Link) *uring.Batch {
	if s.turns != nil {
		return new(uring.Batch)
	}
	b, err := uring.NewBatch(portBatch)
	if err != nil {
		klog.InfoS("No io_uring, so each read of a LUN's file is a system call of its own", "link", l.Name(), "reason", err)
	}
	return b
}

// newPortWaker makes what a port sleeps on.
func (s *Shelf) newPortWaker(l link.Link) (*waker, error) {
	if s.turns == nil {
		return newWaker(l.FD())
	}
	inbox, ok := l.(interface{ Pending() int })
	if !ok {
		return nil, fmt.Errorf("link of type %T cannot be used with turns", l)
	}
	return newTurnWaker(s.turns, func() bool { return inbox.Pending() > 0 }), nil
}

// run serves until ctx ends or the link is down; then it waits for the jobs that LUNs have.
func (p *port) run() error {
	stop := context.AfterFunc(p.ctx, p.waker.wake)
	defer stop()
	var err error
	for err == nil && p.ctx.Err() == nil {
		var busy bool
		busy, err = p.turn()
		if busy || err != nil {
			continue
		}
		if p.lent > 0 {
			// A worker that needs no disk is done before a sleep and a wake-up of two threads would be.
			runtime.Gosched()
			if len(p.finished) > 0 {
				continue
			}
		}
		err = p.sleep()
	}
	for p.lent > 0 {
		j, _ := receive(p.shelf.turns, p.finished)
		p.takeBack(j)
	}
	return err
}

// turn receives, answers and sends once; busy says that there may be more to do at once.
func (p *port) turn() (busy bool, err error) {
	n, err := p.link.Receive(p.rx[:])
	p.shelf.counts.received.Add(uint64(n))
	for _, frame := range p.rx[:n] {
		p.handle(frame)
	}
	p.serveStaged()
	p.link.Return()
	if err != nil {
		return false, err
	}
	for i := 0; i < len(p.jobs) && p.reap(); i++ {
		busy = true
	}
	select {
	case l := <-p.news:
		p.advertise(l)
		busy = true
	default:
	}
	if err := p.send(); err != nil {
		return false, err
	}
	return busy || n > 1, nil // after one frame there is mostly none: better to sleep than to look twice
}

// reap takes back a finished job; false: there is none. It is a select of its own: one of two channels would be a matter of Go's chance,
// which no seed of a simulation decides, and costs more.
func (p *port) reap() bool {
	select {
	case j := <-p.finished:
		p.takeBack(j)
		return true
	default:
		return false
	}
}

// send hands the answers to the network; those it has no room for stay in out.
func (p *port) send() error {
	for len(p.out) > 0 {
		n, err := p.link.Send(p.out)
		p.drop(n)
		p.shelf.counts.sent.Add(uint64(n))
		switch {
		case errors.Is(err, link.ErrTooLong) && len(p.out) > 0:
			p.shelf.counts.tooLong.Add(1)
			p.drop(1)
		case err != nil:
			return err
		case n == 0:
			return nil
		}
	}
	return nil
}

// drop lets go of the first n frames of out.
func (p *port) drop(n int) {
	for i, f := range p.out[:n] {
		f.Release()
		p.out[i] = nil
	}
	p.out = p.out[:copy(p.out, p.out[n:])]
}

// sleep waits for frames, finished jobs or, with answers left, room to send them.
func (p *port) sleep() error {
	events := int16(unix.POLLIN)
	if len(p.out) > 0 {
		events |= unix.POLLOUT
	}
	return p.waker.sleep(events, p.ready)
}

// take makes a job with a copy of a received request; nil if all frames are in use.
func (p *port) take(request aoe.Frame) *job {
	j := p.borrow(request, len(request))
	if j != nil {
		j.fill()
	}
	return j
}

// borrow is take with a copy of the first n bytes only: the job borrows the rest until it is lent or emitted.
func (p *port) borrow(request aoe.Frame, n int) *job {
	f := p.pool.Get()
	if f == nil || len(request) > len(f.Buf()) {
		if f != nil {
			f.Release()
		}
		p.shelf.counts.dropped.Add(1)
		return nil
	}
	j := &p.jobs[f.ID()]
	*j = job{port: p, frame: f, src: request.Src(), length: copy(f.Buf(), request[:n]), rest: request[n:]}
	return j
}

// lend puts a job into a LUN's queue; false if the queue is full. The caller holds the LUN's mu and saw it open.
func (p *port) lend(j *job, queue chan<- *job) bool {
	j.fill()
	select {
	case queue <- j:
		p.lent++
		return true
	default:
		p.shelf.counts.dropped.Add(1)
		return false
	}
}

// finish returns a lent job; LUNs call it from their goroutines.
func (p *port) finish(j *job) {
	p.finished <- j
	p.waker.wake()
}

// takeBack sends a returned job's answer, unless its sender was taken off the LUN meanwhile.
func (p *port) takeBack(j *job) {
	p.lent--
	if j.reply > 0 && !j.lun.mayAnswer(j) {
		j.reply = 0
	}
	p.emit(j)
}

// emit queues a job's answer, if it has one, and ends the job.
func (p *port) emit(j *job) {
	f := j.frame
	j.rest = nil
	if j.reply == 0 {
		f.Release()
		return
	}
	f.SetLen(aoe.Pad(f.Buf(), j.reply))
	p.out = append(p.out, f)
}

func (p *port) close() error {
	p.drop(len(p.out))
	err := p.link.Close()
	err = errors.Join(err, p.pool.Close(), p.batch.Close())
	return errors.Join(err, p.waker.close())
}

// mayAnswer says whether the sender of a finished job may still get its answer.
func (l *lun) mayAnswer(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return j.rules == l.rules || l.visible(j.src)
}
