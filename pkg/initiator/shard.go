package initiator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/brief"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// MaxShards is how many shards a host can have; the last number of the tags' shard bits is package inband's.
const MaxShards = aoe.MaxShards - 1

const (
	// eventBatch is how many events one turn of the loop takes.
	eventBatch = 64
	// receiveRounds bounds how long one link keeps the loop, in batches of frames.
	receiveRounds = 4
	receiveBatch  = 64
	// sleepMost is the longest sleep; links are looked after at that rate, too.
	sleepMost = time.Second
)

// Handler serves a watched file descriptor, on the shard's thread; it must not block.
type Handler interface {
	// Ready is called with epoll's events while the descriptor is readable (or writable, if asked for), has an error or hung up.
	Ready(events uint32)
	// BeforeSleep is called in every turn of the loop after the events: the place to hand over what was gathered.
	BeforeSleep()
}

// ShardConfig describes a shard.
type ShardConfig struct {
	// Index is the shard's number in tags, below MaxShards.
	Index uint8
	// Interfaces are used by devices that name none.
	Interfaces []string
	// RunDir is where the sockets of targets on the same host are looked for; empty: nowhere.
	RunDir string
	// Open opens the links of an interface; nil: AF_PACKET.
	Open OpenLinks
}

// Shard is an event loop on a locked thread of its own; links, devices and handlers belong to that thread. Methods may be
// called from any goroutine unless they say otherwise.
type Shard struct {
	cfg     ShardConfig
	start   time.Time
	epoll   int
	wakeFD  int
	waker   *os.File // of wakeFD: its Close and Write may meet
	tid     int
	calls   atomic.Pointer[call]
	says    chan func()   // to the goroutine that logs
	done    chan struct{} // closed when the loop has ended
	failure error         // of the loop, before done is closed

	// The rest belongs to the loop.
	stopping bool
	watched  map[int32]watch
	sleepers []Handler // those of watched that are handlers of others
	devices  []*Device
	byAddr   map[aoe.Addr]*Device
	links    []*shardLink
	lookAt   time.Duration // when to look after links
	blocked  bool          // a link did not take all frames
	answered bool          // a request failed after handlers handed over what they gathered
	events   [eventBatch]unix.EpollEvent
	lively   bool // there was something to do when the loop last looked
	received [receiveBatch][]byte
	batch    *uring.Batch
}

// watch is a watched descriptor.
type watch struct {
	handler Handler
	events  uint32
}

// NewShard starts the loop. Close ends it.
func NewShard(cfg ShardConfig) (*Shard, error) {
	if cfg.Index >= MaxShards {
		return nil, fmt.Errorf("new shard %d: there are %d", cfg.Index, MaxShards)
	}
	if cfg.Open == nil {
		cfg.Open = openPacketLinks
	}
	s := &Shard{
		cfg: cfg, start: time.Now(), epoll: -1, wakeFD: -1, done: make(chan struct{}),
		says: make(chan func(), 64), watched: make(map[int32]watch), byAddr: make(map[aoe.Addr]*Device),
	}
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("new shard %d: %w", cfg.Index, os.NewSyscallError("epoll_create1", err))
	}
	if s.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("new shard %d: %w", cfg.Index, os.NewSyscallError("eventfd", err)), unix.Close(s.epoll))
	}
	if err := s.control(unix.EPOLL_CTL_ADD, s.wakeFD, unix.EPOLLIN); err != nil {
		return nil, errors.Join(fmt.Errorf("new shard %d: %w", cfg.Index, err), unix.Close(s.wakeFD), unix.Close(s.epoll))
	}
	s.waker = os.NewFile(uintptr(s.wakeFD), "shard's eventfd")
	s.batch, _ = uring.NewBatch(receiveBatch) // without io_uring nobody has requests with Pages
	started := make(chan struct{})
	go s.log()
	go s.run(started)
	<-started
	return s, nil
}

// Close ends the loop and waits for it. Requests that are pending are never completed: whoever takes the volumes over next replays
// them. Idempotent.
func (s *Shard) Close() error {
	err := s.Do(context.Background(), func() { s.stopping = true })
	if err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	<-s.done
	return s.failure
}

// now is the shard's clock.
func (s *Shard) now() time.Duration { return time.Since(s.start) }

// run is the loop. The goroutine ends with Close, and its thread with it.
func (s *Shard) run(started chan<- struct{}) {
	runtime.LockOSThread()
	s.tid = unix.Gettid()
	close(started)
	for !s.stopping {
		if err := s.turn(); err != nil {
			klog.ErrorS(err, "Shard's event loop failed", "shard", s.cfg.Index)
			s.failure = err
			break
		}
	}
	s.failure = errors.Join(s.failure, s.closeAll())
	close(s.done)
	s.runCalls() // those that came too late are let go
}

// say has something logged by another goroutine: a log that nobody reads must not stop the loop. When too much is waiting it is dropped.
func (s *Shard) say(f func()) {
	select {
	case s.says <- f:
	default:
	}
}

// log is that goroutine; it ends with the loop.
func (s *Shard) log() {
	for {
		select {
		case f := <-s.says:
			f()
		case <-s.done:
			return
		}
	}
}

// turn is one round: hand over what was gathered, send, sleep until something happens, take it.
func (s *Shard) turn() error {
	for _, h := range s.sleepers {
		h.BeforeSleep()
	}
	s.transmit()
	n, err := s.wait(s.timeout())
	if err != nil {
		return fmt.Errorf("shard %d: %w", s.cfg.Index, os.NewSyscallError("epoll_wait", err))
	}
	for _, ev := range s.events[:max(n, 0)] {
		if ev.Fd == int32(s.wakeFD) {
			s.awake()
			continue
		}
		if w, ok := s.watched[ev.Fd]; ok { // an earlier event of this turn may have ended the watch
			w.handler.Ready(ev.Events)
		}
	}
	s.tick()
	return nil
}

// wait waits for events, at most so many milliseconds. In the midst of work that is usually not long, and the runtime is not told.
func (s *Shard) wait(most int) (n int, err error) {
	if !s.lively {
		n, err = unix.EpollWait(s.epoll, s.events[:], most)
		if err == unix.EINTR {
			return 0, nil
		}
		s.lively = n > 0
		return n, err
	}
	n, errno := brief.EpollWait(s.epoll, s.events[:], min(most, brief.Wait))
	switch errno {
	case 0:
		s.lively = n > 0 || most == 0
		return n, nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, errno
}

// timeout is how long to sleep at most, in milliseconds.
func (s *Shard) timeout() int {
	if s.calls.Load() != nil || s.answered {
		s.answered = false
		return 0
	}
	now := s.now()
	next := min(now+sleepMost, s.lookAt)
	for _, d := range s.devices {
		if d.core.sending() {
			return 0
		}
		next = min(next, d.core.Next())
	}
	if s.blocked {
		next = min(next, now+time.Millisecond)
	}
	if next <= now {
		return 0
	}
	return int((next - now + time.Millisecond - 1) / time.Millisecond)
}

// tick gives devices their time and tells who wants to know what changed.
func (s *Shard) tick() {
	now := s.now()
	if now >= s.lookAt {
		s.lookAfterLinks(now)
	}
	for _, d := range s.devices {
		if d.core.Next() <= now {
			d.core.Tick(now)
		}
		d.catchUp()
	}
}

// transmit hands the devices' frames to the links.
func (s *Shard) transmit() {
	for _, d := range s.devices {
		pending := d.core.Pending()
		for _, t := range d.core.Transmits() {
			s.links[t.Link].queue = append(s.links[t.Link].queue, t.Frame)
		}
		s.answered = s.answered || d.core.Pending() != pending
	}
	s.blocked = false
	for _, l := range s.links {
		if len(l.queue) > 0 {
			s.send(l)
			s.blocked = s.blocked || len(l.queue) > 0
		}
	}
}

// Watch has a handler called for a descriptor; on the shard's thread. Unwatch ends it.
func (s *Shard) Watch(fd int, h Handler) error {
	if err := s.addWatch(fd, h); err != nil {
		return err
	}
	s.sleepers = append(s.sleepers, h)
	return nil
}

// WatchWrites says whether the handler is called while the descriptor is writable, too; on the shard's thread.
func (s *Shard) WatchWrites(fd int, on bool) error { return s.rewatch(fd, unix.EPOLLOUT, on) }

// WatchReads says whether the handler is called while the descriptor is readable, as it is at first; on the shard's thread. A handler that
// cannot read for now saves the loop from calling it all the time.
func (s *Shard) WatchReads(fd int, on bool) error { return s.rewatch(fd, unix.EPOLLIN, on) }

// rewatch adds an event to those watched or takes it away.
func (s *Shard) rewatch(fd int, event uint32, on bool) error {
	w, ok := s.watched[int32(fd)]
	events := w.events &^ event
	if on {
		events |= event
	}
	if !ok || events == w.events {
		return nil
	}
	if err := s.control(unix.EPOLL_CTL_MOD, fd, events); err != nil {
		return fmt.Errorf("watch %d: %w", fd, err)
	}
	w.events = events
	s.watched[int32(fd)] = w
	return nil
}

// Unwatch ends a Watch, before the descriptor is closed; on the shard's thread. Idempotent.
func (s *Shard) Unwatch(fd int) {
	w, ok := s.watched[int32(fd)]
	if !ok {
		return
	}
	s.dropWatch(fd)
	kept := make([]Handler, 0, len(s.sleepers)) // a fresh one: the old may be in use by turn
	for _, h := range s.sleepers {
		if h != w.handler {
			kept = append(kept, h)
		}
	}
	s.sleepers = kept
}

func (s *Shard) addWatch(fd int, h Handler) error {
	if err := s.control(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN); err != nil {
		return fmt.Errorf("watch %d: %w", fd, err)
	}
	s.watched[int32(fd)] = watch{handler: h, events: unix.EPOLLIN}
	return nil
}

// dropWatch tolerates a descriptor that is closed: epoll has forgotten that by itself.
func (s *Shard) dropWatch(fd int) {
	delete(s.watched, int32(fd))
	if err := s.control(unix.EPOLL_CTL_DEL, fd, 0); err != nil && !errors.Is(err, unix.EBADF) && !errors.Is(err, unix.ENOENT) {
		s.say(func() { klog.ErrorS(err, "Shard could not end a watch", "shard", s.cfg.Index, "fd", fd) })
	}
}

func (s *Shard) control(op, fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.epoll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}

// closeAll gives back what the loop owned.
func (s *Shard) closeAll() error {
	var errs []error
	for _, d := range s.devices {
		d.release()
	}
	s.devices = nil
	for _, l := range s.links {
		errs = append(errs, s.closeLink(l))
	}
	return errors.Join(append(errs, s.batch.Close(), unix.Close(s.epoll), s.waker.Close())...)
}
