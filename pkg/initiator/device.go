package initiator

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// refusalGrace is how long an attachment waits for a better answer after a refusal.
	refusalGrace = 500 * time.Millisecond
	// drainEvery is how often Detach looks whether requests are done.
	drainEvery = 5 * time.Millisecond
)

// DeviceConfig describes an attachment.
type DeviceConfig struct {
	Addr aoe.Addr
	// Generation is the identity that the target must prove; empty: not checked (foreign targets, by hand).
	Generation string
	// UUID is this host's initiator, Incarnation greater than all it has used on this volume (State.Incarnation).
	UUID        aoe.UUID
	Incarnation uint64
	DeadTime    time.Duration // 0: wait for ever
	Interfaces  []string      // empty: the shard's
	PoolMax     int           // frames; 0: DefaultPoolMax
	ReadOnly    bool
	// CacheEpoch, Admission and Lost as State had them, when an earlier process's attachment is taken over; else zero.
	CacheEpoch uint64
	Admission  uint32
	Lost       bool
	// Recovered: an earlier process's attachment is taken over, whose writes may still be on the wire.
	Recovered bool
	// MACs at which the target was seen; empty: it is looked for by broadcast.
	MACs []aoe.MAC
	// Changed, if not nil, is called on the shard's thread after State, Info or Paths changed; it must not block.
	Changed func()
}

// Device is a target that requests can be sent to. Methods may be called from any goroutine unless they say otherwise.
type Device struct {
	shard   *Shard
	core    *Core // the shard's thread's
	cfg     DeviceConfig
	links   []*shardLink
	changed chan struct{} // has room for one

	mu    sync.Mutex // guards what follows; nothing allocates under it
	state State
	info  Info
}

// Attach finds the target, has it prove its identity, opens a session if it knows sessions, and returns when requests can be
// submitted. Errors match ErrNoAnswer, ErrIdentity, ErrNotAdmitted, ErrExists, ErrNoInterface or the context's; with a context that
// ends before anybody answered it is ErrNoAnswer.
func (s *Shard) Attach(ctx context.Context, cfg DeviceConfig) (*Device, error) {
	d, err := s.newDevice(cfg)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", cfg.Addr, err)
	}
	var added error
	if err := s.Do(ctx, func() { added = s.addDevice(d) }); err != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", cfg.Addr, err), s.discard(d))
	}
	if added != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", cfg.Addr, added), s.discard(d))
	}
	if err := d.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", cfg.Addr, err), s.discard(d))
	}
	return d, nil
}

// newDevice makes a device that belongs to no thread yet.
func (s *Shard) newDevice(cfg DeviceConfig) (*Device, error) {
	if len(cfg.Interfaces) == 0 {
		cfg.Interfaces = s.cfg.Interfaces
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	core, err := NewCore(s.now(), CoreConfig{
		Addr: cfg.Addr, Generation: cfg.Generation, UUID: cfg.UUID, Incarnation: cfg.Incarnation, Shard: s.cfg.Index,
		DeadTime: cfg.DeadTime, PoolMax: cfg.PoolMax, ReadOnly: cfg.ReadOnly, CacheEpoch: cfg.CacheEpoch, Admission: cfg.Admission, Lost: cfg.Lost,
		Recovered: cfg.Recovered, FirstCounter: binary.NativeEndian.Uint32(random[:]), MACs: cfg.MACs, Batch: s.batch,
	})
	if err != nil {
		return nil, err
	}
	d := &Device{shard: s, core: core, cfg: cfg, changed: make(chan struct{}, 1)}
	d.state = State{Since: time.Now(), Incarnation: cfg.Incarnation}
	return d, nil
}

// addDevice makes a device the shard's, with its links.
func (s *Shard) addDevice(d *Device) error {
	if s.byAddr[d.cfg.Addr] != nil {
		return ErrExists
	}
	usable := false
	for _, name := range d.cfg.Interfaces {
		l := s.ethernet(name)
		d.links = append(d.links, l)
		usable = usable || l.up
	}
	if s.cfg.RunDir != "" {
		l := s.localTo(d.cfg.Addr.Shelf)
		if !l.up {
			s.raise(l)
		}
		d.links = append(d.links, l)
		usable = usable || l.up
	}
	if !usable {
		return fmt.Errorf("%w among %v", ErrNoInterface, d.cfg.Interfaces)
	}
	s.devices = append(s.devices, d)
	s.byAddr[d.cfg.Addr] = d
	for _, l := range d.links {
		if l.up {
			d.useLink(l)
		}
	}
	return nil
}

// discard takes a device off the shard and gives its memory back.
func (s *Shard) discard(d *Device) error {
	err := s.Do(context.Background(), func() { s.removeDevice(d) })
	if errors.Is(err, ErrClosed) {
		return nil // closeAll did it
	}
	return err
}

func (s *Shard) removeDevice(d *Device) {
	if s.byAddr[d.cfg.Addr] == d {
		delete(s.byAddr, d.cfg.Addr)
	}
	s.devices = slices.DeleteFunc(s.devices, func(other *Device) bool { return other == d })
	d.release()
}

// release gives the device's memory back; frames that the network still reads keep theirs until it lets go.
func (d *Device) release() {
	if err := d.core.Release(); err != nil && !errors.Is(err, pool.ErrHeld) {
		d.shard.say(func() { klog.ErrorS(err, "Could not release frames", "target", d.cfg.Addr) })
	}
}

// uses says whether the device sends over the link.
func (d *Device) uses(l *shardLink) bool { return slices.Contains(d.links, l) }

// useLink tells the core about a link that is up.
func (d *Device) useLink(l *shardLink) {
	if d.uses(l) {
		d.core.SetLink(d.shard.now(), l.id, LinkInfo{
			Name: l.name, MAC: l.answers.MAC(), MTU: l.answers.MTU(), Local: l.local,
		})
	}
}

// catchUp publishes what changed since the last turn's end.
func (d *Device) catchUp() {
	if d.core.Changed() {
		d.publish()
	}
}

// publish makes what changed visible to other goroutines.
func (d *Device) publish() {
	state, info := d.core.State(), d.core.Info()
	d.mu.Lock()
	state.Since = d.state.Since
	if state.Phase != d.state.Phase {
		state.Since = time.Now()
	}
	before := d.state
	d.state, d.info = state, info
	d.mu.Unlock()
	if before.Phase != state.Phase {
		d.shard.say(func() {
			klog.InfoS("Device changed", "target", d.cfg.Addr, "from", before.Phase, "to", state.Phase, "reason", state.Err)
		})
	}
	if !before.Lost && state.Lost {
		d.shard.say(func() {
			klog.ErrorS(ErrLost, "Device can be neither flushed nor written to any more", "target", d.cfg.Addr)
		})
	}
	select {
	case d.changed <- struct{}{}:
	default:
	}
	if d.cfg.Changed != nil {
		d.cfg.Changed()
	}
}

// awaitReady waits until requests can be submitted. A refusal counts when no better answer comes soon.
func (d *Device) awaitReady(ctx context.Context) error {
	poll := time.NewTicker(refusalGrace / 2)
	defer poll.Stop()
	var refusal error
	for {
		ready := false
		err := d.shard.Do(ctx, func() {
			d.catchUp() // Info is to be right when Attach returns
			ready = d.core.Ready()
			var since time.Duration
			since, refusal = d.core.Refusal()
			if refusal != nil && d.shard.now()-since < refusalGrace {
				refusal = nil
			}
		})
		switch {
		case errors.Is(err, ErrClosed):
			return err
		case err == nil && ready:
			return nil
		case err == nil && refusal != nil:
			return refusal
		}
		select {
		case <-ctx.Done():
			return d.gaveUp(ctx)
		case <-d.changed:
		case <-poll.C:
		}
	}
}

// gaveUp is why an attachment was not done in time.
func (d *Device) gaveUp(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	refusal := error(nil)
	identified := false
	if err := d.shard.Do(context.Background(), func() {
		_, refusal = d.core.Refusal()
		identified = d.core.identity.known
	}); err != nil {
		return err
	}
	switch {
	case refusal != nil:
		return refusal
	case identified:
		return fmt.Errorf("%w to OPEN or a first read, though the target identified itself", ErrNoAnswer)
	}
	return ErrNoAnswer
}

// Submit takes a request, on the shard's thread; its Data are borrowed until Complete.
func (d *Device) Submit(r *Request) { d.core.Submit(d.shard.now(), r) }

// Info is what the target said about itself.
func (d *Device) Info() Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

// State is the device's condition.
func (d *Device) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// Stats are the counters since Attach; zero after the shard was closed.
func (d *Device) Stats() (stats Stats) {
	d.ask(func() { stats = d.core.Stats() })
	return stats
}

// Paths are the ways to the target; none after the shard was closed.
func (d *Device) Paths() (paths []PathInfo) {
	d.ask(func() { paths = d.core.Paths(nil) })
	return paths
}

// ask runs a question on the shard's thread; after the shard's end there is no answer.
func (d *Device) ask(fn func()) {
	if err := d.shard.Do(context.Background(), fn); err != nil && !errors.Is(err, ErrClosed) {
		klog.ErrorS(err, "Could not ask the device", "target", d.cfg.Addr)
	}
}

// Shard is where the device lives.
func (d *Device) Shard() *Shard { return d.shard }
