package initiator

import (
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// world is a core, a target and a network between them, on a virtual clock.
type world struct {
	t      testing.TB
	net    *linktest.Network
	links  []*linktest.Link // the core's
	macs   []aoe.MAC
	core   *Core
	target *modelTarget
	now    time.Duration

	broadcasts int // that the core sent
}

// newWorld makes one; configure may be nil and changes the core's configuration.
func newWorld(t testing.TB, seed int64, profile linktest.Profile, configure func(*CoreConfig)) *world {
	t.Helper()
	w := &world{t: t, net: linktest.NewNetwork(seed, profile)}
	w.target = newModelTarget(t, w.net.Link(targetMAC), uint64(seed))
	cfg := CoreConfig{Addr: testAddr, Generation: testGeneration, UUID: testUUID, Incarnation: 100}
	if configure != nil {
		configure(&cfg)
	}
	var err error
	if w.core, err = NewCore(0, cfg); err != nil {
		t.Fatal(err)
	}
	w.plug(ourMAC)
	t.Cleanup(w.end)
	return w
}

// plug gives the core one more interface.
func (w *world) plug(mac aoe.MAC) {
	l := w.net.Link(mac)
	w.links = append(w.links, l)
	w.macs = append(w.macs, mac)
	w.core.SetLink(w.now, LinkID(len(w.links)-1), LinkInfo{Name: l.Name(), MAC: mac, MTU: l.MTU()})
}

// end looks for frames that were changed under the network's eyes, and for leaks.
func (w *world) end() {
	if err := w.net.Err(); err != nil {
		w.t.Error(err)
	}
	w.transmit()
	err := w.core.Release()
	if err != nil && !errors.Is(err, pool.ErrHeld) {
		w.t.Error(err)
	}
	for _, l := range w.links {
		if err := l.Close(); err != nil {
			w.t.Error(err)
		}
	}
	if err := w.target.link.Close(); err != nil {
		w.t.Error(err)
	}
	if err := w.core.Release(); err != nil {
		w.t.Errorf("after the network let go: %v", err)
	}
}

// transmit hands the core's frames to the network.
func (w *world) transmit() {
	for _, t := range w.core.Transmits() {
		if aoe.Frame(t.Frame.Bytes()).Dst() == aoe.Broadcast {
			w.broadcasts++
		}
		if _, err := w.links[t.Link].Send([]*pool.Frame{t.Frame}); err != nil && !errors.Is(err, link.ErrTooLong) && !errors.Is(err, link.ErrDown) {
			w.t.Fatal(err)
		}
		t.Frame.Release()
	}
}

// step moves on to the next event and lets everybody act; false: nothing will ever happen, or not before limit.
func (w *world) step(limit time.Duration) bool {
	w.transmit()
	next := min(w.core.Next(), w.target.next())
	if at, ok := w.net.Next(); ok {
		next = min(next, at.Sub(linktest.Epoch))
	}
	if next > limit {
		w.now = max(w.now, min(limit, next))
		return false
	}
	w.now = max(w.now, next)
	w.net.Advance(linktest.Epoch.Add(w.now))
	w.target.poll(w.now)
	var frames [64][]byte
	for i, l := range w.links {
		for {
			n, err := l.Receive(frames[:])
			if err != nil || n == 0 {
				break
			}
			for _, b := range frames[:n] {
				w.core.Receive(w.now, LinkID(i), b)
			}
			w.core.Settle(w.now)
		}
	}
	if w.core.Next() <= w.now {
		w.core.Tick(w.now)
	}
	return true
}

// until runs until done says so, for at most a span of virtual time.
func (w *world) until(span time.Duration, done func() bool) bool {
	limit := w.now + span
	for !done() {
		if !w.step(limit) {
			w.now = max(w.now, limit)
			return done()
		}
	}
	return true
}

// run lets time pass.
func (w *world) run(span time.Duration) { w.until(span, func() bool { return false }) }

// attach waits for the core to be ready.
func (w *world) attach() {
	w.t.Helper()
	if !w.until(10*time.Second, w.core.Ready) {
		_, err := w.core.Refusal()
		w.t.Fatalf("not ready after 10 s: refusal %v, state %+v, paths %+v", err, w.core.State(), w.core.Paths(nil))
	}
}

// waiter counts completions.
type waiter struct {
	done int
	last *Request
}

func (c *waiter) Complete(r *Request) {
	c.done++
	c.last = r
}

// do submits a request and waits for it.
func (w *world) do(r *Request) error {
	w.t.Helper()
	var c waiter
	r.Done = &c
	w.core.Submit(w.now, r)
	if !w.until(time.Minute, func() bool { return c.done > 0 }) {
		w.t.Fatalf("%s at %d: not done after a minute; state %+v", r.Op, r.LBA, w.core.State())
	}
	return r.Err
}

func (w *world) write(lba uint64, data []byte) error {
	w.t.Helper()
	return w.do(&Request{Op: OpWrite, LBA: lba, Sectors: uint32(len(data) / aoe.SectorSize), Data: data})
}

func (w *world) read(lba uint64, sectors int) ([]byte, error) {
	w.t.Helper()
	data := make([]byte, sectors*aoe.SectorSize)
	return data, w.do(&Request{Op: OpRead, LBA: lba, Sectors: uint32(sectors), Data: data})
}

func (w *world) flush() error {
	w.t.Helper()
	return w.do(&Request{Op: OpFlush})
}

// pattern is data that says where they belong.
func pattern(seed byte, sectors int) []byte {
	b := make([]byte, sectors*aoe.SectorSize)
	for i := range b {
		b[i] = seed + byte(i/aoe.SectorSize)*7 + byte(i)
	}
	return b
}
