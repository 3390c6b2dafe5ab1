package sim

import (
	"errors"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// node is a host with an initiator: its interfaces, and the devices of its kernel, which outlive the initiator's process.
type node struct {
	sim     *Sim
	name    string
	index   int
	links   []*linktest.Link
	up      []bool
	devices []*device
	down    bool // no initiator process
}

func (n *node) macs() []aoe.MAC {
	var macs []aoe.MAC
	for _, l := range n.links {
		macs = append(macs, l.MAC())
	}
	return macs
}

// device is an attachment. The kernel keeps requests that are not answered while the initiator is away.
type device struct {
	node   *node
	volume *volume
	addr   aoe.Addr
	core   *initiator.Core // nil: no process
	// What the attachment's record has.
	state      initiator.State
	attachedAt uint64 // model's time
	lostAt     uint64 // when an acknowledged write of this attachment was lost; 0: never
	toldAt     uint64 // when a flush of it failed for such a loss; 0: never
	poolMax    int
	pending    []*request
	fenced     bool // its node is being taken off; it may be admitted again
	expelled   bool // … and was: nothing of this attachment may take effect any more
	gone       bool // detached: nothing more is submitted
	live       bool // the core is ready
	wasReady   bool // … or one before it was
}

// request is an operation on its way, as the kernel has it.
type request struct {
	initiator.Request
	op     *operation
	device *device
	done   bool
	err    error
}

// Complete implements initiator.Completer.
func (r *request) Complete(*initiator.Request) {
	d := r.device
	if r.done {
		d.node.sim.fail("%s: completed twice", r.op)
		return
	}
	r.done, r.err = true, r.Err
	for i, p := range d.pending {
		if p == r {
			d.pending = append(d.pending[:i], d.pending[i+1:]...)
			break
		}
	}
	d.node.sim.tracef("%s: %s done: %v", d.node.name, r.op, r.err)
	d.node.sim.model.completed(d, r.op, r.Data, r.err)
}

// submit hands a request to the kernel's queue, and to the initiator if there is one.
func (d *device) submit(r *request) {
	r.device, r.Done = d, r
	d.pending = append(d.pending, r)
	if d.live {
		d.core.Submit(d.node.sim.now, &r.Request)
	}
}

// attach makes a device on a node.
func (n *node) attach(v *volume) *device {
	s := n.sim
	d := &device{node: n, volume: v, addr: aoe.Addr{Shelf: shelfNumber, Slot: v.slot}, attachedAt: s.model.tick(), poolMax: 2 + s.dice.IntN(s.plan.poolMax)}
	n.devices = append(n.devices, d)
	s.tracef("%s: attaches %s", n.name, v)
	if !n.down {
		d.open(false)
	}
	return d
}

// open makes the device's core, from its record if an earlier one is taken over.
func (d *device) open(recovered bool) {
	s := d.node.sim
	s.incarnations = max(s.incarnations, d.state.Incarnation) + 1 + s.dice.Uint64N(3)
	core, err := initiator.NewCore(s.now, initiator.CoreConfig{
		Addr: d.addr, Generation: d.volume.generation, UUID: aoe.UUID{byte(d.node.index + 1)}, Incarnation: s.incarnations,
		PoolMax: d.poolMax, CacheEpoch: d.state.CacheEpoch, Admission: d.state.Admission, Lost: d.state.Lost, Recovered: recovered, FirstCounter: s.dice.Uint32(),
	})
	if err != nil {
		s.fail("%s: %v", d.node.name, err)
		return
	}
	d.core = core
	for i := range d.node.links {
		if d.node.up[i] {
			d.setLink(i)
		}
	}
}

// takeOver hands the core what the kernel has kept: once it is ready, as the front ends do.
func (d *device) takeOver() {
	s := d.node.sim
	d.live, d.wasReady = true, true
	s.tracef("%s: %s is ready", d.node.name, d.volume)
	for _, r := range append([]*request(nil), d.pending...) {
		s.tracef("%s: %s again", d.node.name, r.op)
		d.core.Submit(s.now, &r.Request)
	}
}

func (d *device) setLink(i int) {
	l := d.node.links[i]
	d.core.SetLink(d.node.sim.now, initiator.LinkID(i), initiator.LinkInfo{Name: l.Name(), MAC: l.MAC(), MTU: l.MTU()})
}

// release forgets the core.
func (d *device) release() {
	if d.core == nil {
		return
	}
	// What the kernel has handed over and not got back stays in pending.
	if err := d.core.Release(); err != nil && !errors.Is(err, pool.ErrHeld) {
		d.node.sim.fail("%s: release: %v", d.node.name, err)
	}
	d.core, d.live = nil, false
}

// detach ends an attachment, with what is pending given up if force is set. A task calls it.
func (d *device) detach(t *turns, force bool) {
	s := d.node.sim
	d.gone = true
	s.tracef("%s: detaches %s, force %v", d.node.name, d.volume, force)
	for len(d.pending) > 0 && s.err == nil {
		if force {
			d.giveUp()
		}
		t.sleep(10*time.Millisecond, func() bool { return len(d.pending) == 0 })
	}
	if d.core != nil {
		d.core.Close(s.now)
		until := s.now + 3*time.Second
		for at := s.now; at < until; at += 20 * time.Millisecond {
			s.wakeAt(at)
		}
		s.wakeAt(until) // perhaps the last thing that happens
		t.Await(func() bool { return d.core == nil || d.core.Closed(s.now) || s.now >= until })
	}
	d.release()
	for i, other := range d.node.devices {
		if other == d {
			d.node.devices = append(d.node.devices[:i], d.node.devices[i+1:]...)
			break
		}
	}
}

// giveUp fails all that is pending: through the core if that has it, else the kernel does it when it removes the device.
func (d *device) giveUp() {
	if d.live {
		d.core.Fail(d.node.sim.now, initiator.ErrIO)
		return
	}
	for len(d.pending) > 0 {
		r := d.pending[0]
		r.Err = initiator.ErrIO
		r.Complete(&r.Request)
	}
}

// crash ends the initiator's process; the kernel keeps its devices.
func (n *node) crash() {
	if n.down {
		return
	}
	n.sim.tracef("%s: initiator killed", n.name)
	n.down = true
	for _, d := range n.devices {
		d.release()
	}
}

// recover begins a process that takes the devices over.
func (n *node) recover() {
	if !n.down {
		return
	}
	n.sim.tracef("%s: initiator starts", n.name)
	n.down = false
	for _, d := range n.devices {
		d.open(true)
	}
}

// setUp takes an interface down or up.
func (n *node) setUp(i int, up bool) {
	if n.up[i] == up {
		return
	}
	n.sim.tracef("%s: %s up: %v", n.name, n.links[i].Name(), up)
	n.up[i] = up
	n.links[i].SetDown(!up)
	for _, d := range n.devices {
		switch {
		case d.core == nil:
		case up:
			d.setLink(i)
		default:
			d.core.DropLink(n.sim.now, initiator.LinkID(i))
		}
	}
}

// poll lets the node's cores receive, act and send; it says whether anything happened.
func (n *node) poll() (any bool) {
	s := n.sim
	for i, l := range n.links {
		for n.up[i] {
			k, err := l.Receive(s.received[:])
			if err != nil || k == 0 {
				break
			}
			any = true
			for _, b := range s.received[:k] {
				n.dispatch(initiator.LinkID(i), b)
			}
			for _, d := range n.devices {
				if d.core != nil {
					d.core.Settle(s.now)
				}
			}
		}
	}
	for _, d := range n.devices {
		if d.core == nil {
			continue
		}
		if d.core.Next() <= s.now {
			d.core.Tick(s.now)
		}
		any = d.transmit() || any
		if d.core.Changed() {
			d.state = d.core.State()
		}
		if !d.live && d.core.Ready() {
			any = true
			d.takeOver()
		}
	}
	return any
}

// dispatch finds the device by the target's address.
func (n *node) dispatch(id initiator.LinkID, b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil {
		return
	}
	for _, d := range n.devices {
		if d.core != nil && d.addr == f.Addr() {
			d.core.Receive(n.sim.now, id, b)
			return
		}
	}
}

// transmit hands the core's frames to the network.
func (d *device) transmit() (any bool) {
	for _, t := range d.core.Transmits() {
		any = true
		_, _ = d.node.links[t.Link].Send([]*pool.Frame{t.Frame}) // a link that is down or too narrow loses it
		t.Frame.Release()
	}
	if st := d.core.Stats(); st.PoolFrames > st.PoolCeiling {
		d.node.sim.fail("%s: pool has %d frames, its ceiling is %d", d.node.name, st.PoolFrames, st.PoolCeiling)
	}
	return any
}
