package target

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// Serve answers frames on one link, which it takes, until ctx ends (nil) or the link is down (link.ErrDown). It advertises every
// LUN first. Several links may be served at once.
func (s *Shelf) Serve(ctx context.Context, l link.Link) error {
	p, err := newPort(ctx, s, l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.portsMu.Lock()
	s.ports[p] = struct{}{}
	s.portsMu.Unlock()
	// Until it is off the list, somebody may wake the port: its descriptors must stay open.
	defer func() {
		s.portsMu.Lock()
		delete(s.ports, p)
		s.portsMu.Unlock()
		if err := p.close(); err != nil {
			klog.ErrorS(err, "Closing a link", "link", l.Name())
		}
	}()
	for slot := range maxSlots {
		if lun := s.at(uint8(slot)); lun != nil {
			p.advertise(lun)
		}
	}
	if err := p.run(); err != nil {
		return fmt.Errorf("serve %s: %w", l.Name(), err)
	}
	return nil
}

// announce has every port advertise a LUN that is new or has changed.
func (s *Shelf) announce(l *lun) {
	s.portsMu.Lock()
	defer s.portsMu.Unlock()
	for p := range s.ports {
		select {
		case p.news <- l:
			p.waker.wake()
		default: // the port is far behind; initiators ask, too
		}
	}
}

// advertise queues an unasked config response: to everybody, or to those who may see the LUN.
func (p *port) advertise(l *lun) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
	case l.access == ManagedAccess:
		for _, s := range l.senders {
			p.advertiseTo(l, s.mac)
		}
	case len(l.mask) == 0:
		p.advertiseTo(l, aoe.Broadcast)
	default:
		for _, mac := range l.mask {
			p.advertiseTo(l, mac)
		}
	}
}

// advertiseTo queues one config response. The caller holds the LUN's mu.
func (p *port) advertiseTo(l *lun, dst aoe.MAC) {
	f := p.pool.Get()
	if f == nil {
		p.shelf.counts.dropped.Add(1)
		return
	}
	h := aoe.Header{Dst: dst, Src: p.mac, Response: true, Addr: l.addr()}
	n := aoe.PutConfig(f.Buf(), &h, p.configFields(l, aoe.ConfigRead))
	f.SetLen(aoe.Pad(f.Buf(), n))
	p.out = append(p.out, f)
}
