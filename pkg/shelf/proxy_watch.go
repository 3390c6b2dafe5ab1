package shelf

import (
	"context"
	"math/rand/v2"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
)

const (
	// watchEvery is how often the shelf's targets are asked who they are, watchJitter what several proxies differ by.
	watchEvery  = 10 * time.Second
	watchJitter = time.Second
	// watchWait is how long all of a shelf may take to answer.
	watchWait = 5 * time.Second
)

// Run watches the shelf's targets until ctx ends: who is there, and whether one lost what the proxy wrote on it. A target that
// advertises itself was perhaps just started and is looked at at once.
func (p *Proxy) Run(ctx context.Context) {
	soon := make(chan uint8, maxSlots)
	p.cfg.Client.Listen(func(a inband.Answer) {
		if a.Addr.Shelf == p.cfg.Shelf && a.ConfigString == "" {
			select {
			case soon <- a.Addr.Slot:
			default: // the next round finds it
			}
		}
	})
	defer func() { p.cfg.Client.Listen(nil) }()
	round := time.NewTimer(0)
	defer round.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-soon:
			if s := p.slots[n]; s != nil {
				p.lookAfter(ctx, s)
			}
		case <-round.C:
			if err := p.Look(ctx); err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "Shelf's targets could not be asked", "shelf", p.cfg.Shelf)
			}
			round.Reset(watchEvery + rand.N(watchJitter))
		}
	}
}

// Look asks all targets of the shelf who they are, and puts right what one lost.
func (p *Proxy) Look(ctx context.Context) error {
	answers, err := p.cfg.Client.Scan(ctx, inband.ScanConfig{
		Addr: &aoe.Addr{Shelf: p.cfg.Shelf, Slot: aoe.AnySlot}, Wait: watchWait, Abilities: true,
	})
	if err != nil {
		return err
	}
	p.know(ctx, answers)
	return nil
}

// know takes what the targets of the shelf answered.
func (p *Proxy) know(ctx context.Context, answers []inband.Answer) {
	found := map[uint8]*inband.Target{}
	for _, t := range inband.Targets(answers) {
		found[t.Addr.Slot] = &t
	}
	for n, s := range p.slots {
		s.mu.Lock()
		if was, is := s.target, found[n]; is != nil && was != nil && is.Answers[0].Serial != was.Answers[0].Serial {
			s.refusal = "" // another disk: what was found on the old one says nothing
		}
		s.target = found[n]
		s.mu.Unlock()
		if found[n] != nil {
			p.lookAfter(ctx, s)
		}
	}
}

// lookAfter gives a target back what it lost, if a volume owns it.
func (p *Proxy) lookAfter(ctx context.Context, s *slot) {
	if !s.work.TryLock() {
		return // somebody is at it
	}
	defer s.work.Unlock()
	rec, err := p.intent(ctx, s.addr)
	if err == nil && rec == nil {
		return
	}
	a, unreachable := s.answer()
	if unreachable != nil {
		return
	}
	if err == nil {
		err = p.restore(ctx, s, a, rec)
	}
	if err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Target could not be looked after", "target", s.addr.String())
	}
}
