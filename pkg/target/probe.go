package target

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// A shelf number must be unique on a segment. A target that starts asks for its own number: by Query Config, which any kind
// of target answers, and by OPEN with operation 2 to slot 255, which our targets answer even while all their LUNs are
// hidden from us. The answer names the shelf's UUID and nothing else.

const (
	// opProbe is OPEN's operation that asks who a shelf is.
	opProbe aoe.OpenOp = 2
	// ProbeShard is the shard in the tags of probes; the probing link must receive its answers (link.FilterResponses).
	ProbeShard = aoe.MaxShards - 1

	probeTries = 3
	probeWait  = 150 * time.Millisecond
)

// answerProbe says which shelf this is.
func (p *port) answerProbe(f aoe.Frame) {
	o, err := f.Open()
	if err != nil || o.Op() != opProbe {
		return
	}
	j := p.take(f)
	if j == nil {
		return
	}
	h := aoe.Header{
		Dst: j.src, Src: p.mac, Response: true, Addr: aoe.Addr{Shelf: p.shelf.number, Slot: aoe.AnySlot}, Tag: f.Tag(),
	}
	j.reply = aoe.PutOpen(j.frame.Buf(), &h, &aoe.OpenFields{Op: opProbe, Initiator: uuidBytes(p.shelf.uuid)})
	p.emit(j)
}

// uuidBytes reads a UUID in its usual form; a bad one is zero.
func uuidBytes(s string) (u aoe.UUID) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err == nil {
		copy(u[:], b)
	}
	return u
}

// Probe looks on a link, which it borrows, for another target with this shelf number, for about half a second; ErrDuplicate says who
// answered. Run it before Serve. own are addresses of this host, whose answers count for nothing.
func (s *Shelf) Probe(ctx context.Context, l link.Link, own []aoe.MAC) error {
	frames, err := pool.New(pool.Config{FrameSize: minFrame, Initial: 2, Max: 2 * probeTries})
	if err != nil {
		return fmt.Errorf("probe %s: %w", l.Name(), err)
	}
	for try := range probeTries {
		if err = s.sendProbes(l, frames, try); err != nil {
			break
		}
		if err = s.awaitProbe(ctx, l, own); err != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("probe %s for shelf %d: %w", l.Name(), s.number, err)
	}
	return errors.Join(err, frames.Close())
}

func (s *Shelf) sendProbes(l link.Link, frames *pool.Pool, try int) error {
	config, open := frames.Get(), frames.Get()
	h := aoe.Header{
		Dst: aoe.Broadcast, Src: l.MAC(), Addr: aoe.Addr{Shelf: s.number, Slot: aoe.AnySlot},
		Tag: aoe.MakeTag(ProbeShard, 0, uint32(try)+1),
	}
	config.SetLen(aoe.Pad(config.Buf(), aoe.PutConfig(config.Buf(), &h, &aoe.ConfigFields{})))
	open.SetLen(aoe.PutOpen(open.Buf(), &h, &aoe.OpenFields{Op: opProbe}))
	_, err := l.Send([]*pool.Frame{config, open})
	config.Release()
	open.Release()
	return err
}

// awaitProbe returns nil when nobody answered in time.
func (s *Shelf) awaitProbe(ctx context.Context, l link.Link, own []aoe.MAC) error {
	until := time.Now().Add(probeWait)
	var rx [portBatch][]byte
	for {
		n, err := l.Receive(rx[:])
		if err != nil {
			return err
		}
		for _, raw := range rx[:n] {
			if err := s.judgeProbe(raw, own); err != nil {
				return err
			}
		}
		left := time.Until(until)
		if err := ctx.Err(); err != nil || left <= 0 {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
	}
}

// judgeProbe returns an error if a frame shows that another target has our number.
func (s *Shelf) judgeProbe(raw []byte, own []aoe.MAC) error {
	f, err := aoe.ParseFrame(raw)
	if err != nil || !f.IsResponse() || f.Addr().Shelf != s.number {
		return nil
	}
	for _, mac := range own {
		if f.Src() == mac {
			return nil
		}
	}
	if o, err := f.Open(); err == nil && o.Op() == opProbe {
		if o.Initiator() == uuidBytes(s.uuid) {
			return fmt.Errorf("%w: a copy of this directory is served by %s", ErrDuplicate, f.Src())
		}
		return fmt.Errorf("%w: by %s, with UUID %x", ErrDuplicate, f.Src(), o.Initiator())
	}
	if f.Command() == aoe.CommandConfig {
		return fmt.Errorf("%w: %s answers as %s", ErrDuplicate, f.Src(), f.Addr())
	}
	return nil
}
