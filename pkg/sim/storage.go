package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// storage is a storage host: its disk, its interface, and the target that runs there, or does not.
type storage struct {
	sim   *Sim
	disk  *disk
	mac   aoe.MAC
	boots int
	life  *life // nil: no process
	lives int
}

// life is one process of the target; it implements target.Host.
type life struct {
	sim     *Sim
	storage *storage
	turns   *turns
	link    *linktest.Link
	shelf   *target.Shelf // nil until it is open
	cancel  context.CancelFunc
	dead    bool
	stopped bool // Close has returned
}

const shelfNumber = 7

// start begins a process.
func (h *storage) start() {
	h.lives++
	s := h.sim
	l := &life{sim: s, storage: h, turns: &turns{sim: s, preemptible: true}, link: s.net.Link(h.mac)}
	h.life = l
	s.lives = append(s.lives, l)
	s.tracef("target: starts, process %d, boot %d", h.lives, h.boots)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.turns.Go(func() {
		number := uint16(shelfNumber)
		shelf, err := target.Open(target.Config{Dir: "shelf", Number: &number, Host: l})
		if err != nil {
			l.down(err)
			return
		}
		l.shelf = shelf
		err = shelf.Serve(ctx, l.link)
		if err != nil && !l.dead {
			s.fail("target: serve: %v", err)
		}
		err = shelf.Close()
		s.tracef("target: closed: %v", err)
		l.stopped = true
	})
}

// down is for a process that does not come up; whoever supervises it starts the next.
func (l *life) down(err error) {
	s, h := l.sim, l.storage
	s.tracef("target: not open: %v", err)
	if !l.dead && !errors.Is(err, errDisk) {
		s.fail("target: open: %v", err)
	}
	_ = l.link.Close()
	l.stopped = true
	if h.life != l {
		return
	}
	h.life = nil
	s.begin(func() {
		s.tasks.sleep(100*time.Millisecond, s.failed)
		h.up()
	})
}

// kill ends the process at once. What is left of it runs on without disk and network, until it has let go of its memory.
func (h *storage) kill() {
	l := h.life
	if l == nil {
		return
	}
	h.sim.tracef("target: killed")
	h.life = nil
	l.dead = true
	l.link.SetDown(true)
	l.cancel()
}

// dieSoon sometimes kills a process that has just heard of a loss, before or after it has told anybody.
func (s *Sim) dieSoon(l *life) {
	if s.healed || s.dice.IntN(2) == 0 {
		return
	}
	s.begin(func() {
		s.tasks.sleep(time.Duration(s.dice.Int64N(int64(2*s.plan.disk+time.Millisecond))), s.failed)
		if l.storage.life == l {
			l.storage.kill()
			s.tasks.sleep(time.Duration(s.dice.IntN(300))*time.Millisecond, s.failed)
			l.storage.up()
		}
	})
}

// stop ends the process in an orderly way; it is called by a task.
func (h *storage) stop(t *turns) {
	l := h.life
	if l == nil {
		return
	}
	h.sim.tracef("target: stops")
	l.cancel()
	t.Await(func() bool { return l.stopped || l.dead })
	if h.life == l {
		h.life = nil
	}
}

// cutPower is kill for the whole host.
func (h *storage) cutPower() {
	h.kill()
	h.sim.tracef("target: power cut")
	h.boots++
	h.disk.cutPower()
}

// pause is the time that an access to the disk takes, or a part of it.
func (l *life) pause() error {
	if !l.dead {
		l.turns.sleep(l.sim.latency(), func() bool { return l.dead })
	}
	if l.dead {
		return errDead
	}
	return nil
}

// Now implements target.Host.
func (l *life) Now() time.Time { return linktest.Epoch.Add(l.sim.now) }

// BootID implements target.Host.
func (l *life) BootID() (string, error) { return fmt.Sprintf("boot-%d", l.storage.boots), nil }

// Random implements target.Host.
func (l *life) Random(p []byte) {
	for len(p) > 0 {
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], l.sim.dice.Uint64())
		p = p[copy(p, b[:]):]
	}
}

// Open implements target.Host.
func (l *life) Open(string) (target.Media, error) { return &media{disk: l.storage.disk, life: l}, nil }

// Turns implements target.Host.
func (l *life) Turns() target.Turns { return l.turns }

var (
	_ target.Host  = (*life)(nil)
	_ target.Media = (*media)(nil)
	_ target.File  = (*handle)(nil)
	_ target.Turns = (*turns)(nil)
)
