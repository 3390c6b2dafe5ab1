package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// stage is how far an attachment is.
type stage uint8

const (
	attaching  stage = iota // there is no device yet, or nobody was told of it
	recovering              // an earlier process's device, which nobody serves yet
	attached
	detaching // on its way out; an Attach takes that back
	removed   // the device is gone from the kernel, the rest has to follow
)

// Status describes an attachment at one moment.
type Status struct {
	Options        Options
	Device         string // "/dev/nbd0"; empty before there is one
	Frontend       string
	FrontendReason string
	SizeBytes      uint64
	State          string // "attaching", "live", "stalled", "failed", "detaching"
	Message        string
	Since          time.Time // of State
	Info           initiator.Info
	Paths          []initiator.PathInfo
	Stats          initiator.Stats
}

// attachment is one volume. Its key's lock is held by whoever changes its stage; mu guards the fields for those who look.
type attachment struct {
	m       *Manager
	opts    Options
	changed chan struct{} // the target's condition changed; has room for one
	done    chan struct{} // closed with the attachment; ends follow

	mu          sync.Mutex
	stage       stage
	since       time.Time // of the stage
	message     string    // what holds it up, if anything
	front       blockdev.Frontend
	reason      string
	dev         *initiator.Device
	disk        blockdev.Device
	pump        *pump
	rec         record
	recorded    bool // the record is on disk
	closed      bool // done is closed
	detachSince time.Time
	flushing    *flushing
}

func (m *Manager) newAttachment(opts Options, s stage) *attachment {
	return &attachment{
		m: m, opts: opts, stage: s, since: time.Now(),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
		rec: record{BootID: m.bootID, Initiator: m.id.String(), Options: opts, Attached: time.Now()},
	}
}

// setStage changes the stage, with a message for people.
func (a *attachment) setStage(s stage, message string) {
	a.mu.Lock()
	if a.stage != s {
		a.stage, a.since = s, time.Now()
	}
	a.message = message
	a.mu.Unlock()
	a.m.notify()
}

func (a *attachment) at() stage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage
}

func (a *attachment) target() *initiator.Device {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dev
}

func (a *attachment) device() blockdev.Device {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.disk
}

// changedNow is called on the shard's thread when the target's condition changed.
func (a *attachment) changedNow() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// follow keeps the record up to date with what the target told, until the attachment ends.
func (a *attachment) follow() {
	for {
		select {
		case <-a.done:
			return
		case <-a.changed:
		}
		if err := a.note(); err != nil {
			klog.ErrorS(err, "Record of an attachment is not up to date", "volume", a.opts.VolumeID)
		}
		a.m.notify()
	}
}

// note writes what has changed of the session to the record.
func (a *attachment) note() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.recorded || a.dev == nil {
		return nil
	}
	s := a.dev.State()
	if s.Incarnation == a.rec.Incarnation && s.CacheEpoch == a.rec.CacheEpoch && s.Admission == a.rec.Admission && s.Lost == a.rec.Lost {
		return nil
	}
	a.rec.Incarnation = max(s.Incarnation, a.rec.Incarnation)
	if s.Lost && !a.rec.Lost {
		a.rec.LostReason = lostReason(a.rec.CacheEpoch, s.CacheEpoch, time.Now())
	}
	a.rec.CacheEpoch, a.rec.Admission, a.rec.Lost = s.CacheEpoch, s.Admission, s.Lost
	return a.m.records.write(&a.rec)
}

// lostReason says for people why flushes and writes fail from now on.
func lostReason(before, now uint64, at time.Time) string {
	what := "a flush failed on the target"
	if before != now {
		what = "the target came back without what it had not made durable"
	}
	return fmt.Sprintf("%v: %s (%s)", initiator.ErrLost, what, at.UTC().Format(time.RFC3339))
}

// save writes the record as change leaves it.
func (a *attachment) save(change func(*record)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.rec)
	if err := a.m.records.write(&a.rec); err != nil {
		return err
	}
	a.recorded = true
	return nil
}

// finish ends an attachment that is gone from the kernel.
func (a *attachment) finish() error {
	a.mu.Lock()
	a.recorded = false
	if !a.closed {
		a.closed = true
		close(a.done)
	}
	a.mu.Unlock()
	if err := a.m.records.remove(a.opts.VolumeID); err != nil {
		return err
	}
	a.m.drop(a)
	return nil
}

// abandon leaves the device to the next process; the shards are closed already.
func (a *attachment) abandon() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.closed = true
		close(a.done)
	}
	if a.disk == nil {
		return nil
	}
	if err := a.disk.Close(); err != nil {
		return fmt.Errorf("leave %s: %w", a.disk.Path(), err)
	}
	return nil
}

// serve has the pump move requests between the device and the target; the device can be started then.
func (a *attachment) serve(ctx context.Context, disk blockdev.Device) error {
	dev := a.target()
	p := newPump(a.opts.VolumeID, dev.Shard(), disk.Queue(), dev, a.changedNow)
	a.mu.Lock()
	a.disk, a.pump = disk, p
	a.mu.Unlock()
	var watchErr error
	if err := dev.Shard().Do(ctx, func() { watchErr = p.watch() }); err != nil {
		return err
	}
	return watchErr
}

// unserve ends that; requests that are outstanding still complete into the queue.
func (a *attachment) unserve() error {
	a.mu.Lock()
	p, dev := a.pump, a.dev
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	err := dev.Shard().Do(context.Background(), p.unwatch)
	if errors.Is(err, initiator.ErrClosed) {
		return nil
	}
	return err
}

// status looks at everything.
func (a *attachment) status() Status {
	a.mu.Lock()
	s := Status{Options: a.opts, FrontendReason: a.reason, Since: a.since, Message: a.message}
	lost := a.rec.LostReason
	st, dev, disk, gone := a.stage, a.dev, a.disk, a.pump != nil && a.pump.gone.Load()
	if a.front != nil {
		s.Frontend = a.front.Name()
	}
	if disk == nil && st == recovering {
		s.SizeBytes = a.rec.Device.Params.SizeBytes
	}
	a.mu.Unlock()

	if disk != nil {
		state := disk.State()
		s.Device, s.SizeBytes = disk.Path(), state.Params.SizeBytes
	}
	if dev != nil {
		s.Info, s.Paths, s.Stats = dev.Info(), dev.Paths(), dev.Stats()
	}
	switch st {
	case attaching, recovering:
		s.State = "attaching"
	case detaching, removed:
		s.State = "detaching"
	case attached:
		condition := dev.State()
		s.State, s.Since = condition.Phase.String(), condition.Since
		switch {
		case gone:
			s.State, s.Message = "failed", s.Device+" was disconnected by somebody else; attach the volume again"
		case condition.Err != nil:
			s.Message = condition.Err.Error()
		case condition.Lost:
			s.State, s.Message = "failed", cmp.Or(lost, initiator.ErrLost.Error())
		case !s.Info.Flush:
			s.Message = "the target cannot make data durable on request"
		}
	}
	return s
}
