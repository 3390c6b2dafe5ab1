package initiator

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// lookEvery is how often links that are down are tried again, refreshEvery how often the others are asked for their MTU.
	lookEvery    = 200 * time.Millisecond
	refreshEvery = 5 * time.Second
)

// OpenLinks opens the links of an interface for a shard: answers, through which requests are sent, too, and config responses.
type OpenLinks func(ifname string, shard uint8) (answers, config link.Link, err error)

// openPacketLinks is the real one.
func openPacketLinks(ifname string, shard uint8) (answers, config link.Link, err error) {
	a, err := link.OpenPacket(ifname, link.PacketConfig{Filter: link.FilterResponses(shard)})
	if err != nil {
		return nil, nil, err
	}
	c, err := link.OpenPacket(ifname, link.PacketConfig{Filter: link.FilterConfig(), Buffer: 256 << 10, Longest: link.StandardLen})
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, c, nil
}

// localSocket is where a shelf's target listens for initiators on its host.
func localSocket(runDir string, shelf uint16) string {
	return filepath.Join(runDir, fmt.Sprintf("shelf-%d.sock", shelf))
}

// shardLink is an interface, or a socket to a target on this host, that devices of the shard share.
type shardLink struct {
	shard     *Shard
	id        LinkID
	name      string
	shelf     uint16 // of a local one
	local     bool
	answers   link.Link // nil: not open
	config    link.Link // nil for a local one
	up        bool
	refreshAt time.Duration
	// queue has a hold on each frame in it; waited: some are from an earlier turn.
	queue  []*pool.Frame
	waited bool
}

// refresher is a link that can be brought back, and whose MTU may change.
type refresher interface{ Refresh() error }

// reader is a link's socket as the loop watches it.
type reader struct {
	on   *shardLink
	link link.Link
}

// Ready implements Handler.
func (r *reader) Ready(uint32) { r.on.shard.receive(r.on, r.link) }

// BeforeSleep implements Handler; a reader gathers nothing.
func (r *reader) BeforeSleep() {}

// ethernet returns the shared link of an interface, opened if it can be.
func (s *Shard) ethernet(name string) *shardLink {
	for _, l := range s.links {
		if !l.local && l.name == name {
			return l
		}
	}
	l := &shardLink{shard: s, id: LinkID(len(s.links)), name: name}
	s.links = append(s.links, l)
	s.raise(l)
	return l
}

// localTo returns the shared link to the target of a shelf on this host, opened if it can be.
func (s *Shard) localTo(shelf uint16) *shardLink {
	for _, l := range s.links {
		if l.local && l.shelf == shelf {
			return l
		}
	}
	l := &shardLink{shard: s, id: LinkID(len(s.links)), name: "local", local: true, shelf: shelf}
	s.links = append(s.links, l)
	s.raise(l)
	return l
}

// raise opens a link or brings it back; it stays down if that fails.
func (s *Shard) raise(l *shardLink) {
	var err error
	if l.answers == nil {
		err = s.open(l)
	} else if r, ok := l.answers.(refresher); ok {
		err = r.Refresh()
		if rc, ok := l.config.(refresher); ok && err == nil {
			err = rc.Refresh()
		}
	}
	l.refreshAt = s.now() + refreshEvery
	if err != nil {
		s.say(func() { klog.V(4).InfoS("Link is down", "link", l.name, "reason", err) })
		return
	}
	l.up = true
	mac, mtu := aoe.MAC(l.answers.MAC()), l.answers.MTU()
	s.say(func() { klog.V(2).InfoS("Link is up", "link", l.name, "mac", mac, "mtu", mtu) })
	for _, d := range s.devices {
		d.useLink(l)
	}
}

// open makes a link's sockets and watches them.
func (s *Shard) open(l *shardLink) (err error) {
	if l.local {
		l.answers, err = s.dial(l.shelf)
	} else {
		l.answers, l.config, err = s.cfg.Open(l.name, s.cfg.Index)
	}
	if err != nil {
		l.answers, l.config = nil, nil
		return err
	}
	for _, k := range []link.Link{l.answers, l.config} {
		if k == nil {
			continue
		}
		if err := s.addWatch(k.FD(), &reader{on: l, link: k}); err != nil {
			return errors.Join(err, s.closeLink(l))
		}
	}
	return nil
}

// dial connects to a target on this host, in the name of the first interface: targets admit MACs.
func (s *Shard) dial(shelf uint16) (link.Link, error) {
	if s.cfg.RunDir == "" {
		return nil, link.ErrDown
	}
	mac := aoe.MAC{0x02, 'a', 'o', 'e', 0, 1}
	for _, l := range s.links {
		if !l.local && l.answers != nil {
			mac = l.answers.MAC()
			break
		}
	}
	l, err := link.DialLocal(localSocket(s.cfg.RunDir, shelf), mac)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// lower takes a link out of use. A local one is closed, since its peer is gone for good.
func (s *Shard) lower(l *shardLink, why error) {
	s.say(func() { klog.InfoS("Link went down", "link", l.name, "reason", why) })
	l.up = false
	l.drop(len(l.queue))
	for _, d := range s.devices {
		d.core.DropLink(s.now(), l.id)
	}
	if l.local {
		if err := s.closeLink(l); err != nil {
			s.say(func() { klog.ErrorS(err, "Could not close link", "link", l.name) })
		}
	}
}

// closeLink closes a link's sockets; it can be opened again.
func (s *Shard) closeLink(l *shardLink) error {
	l.drop(len(l.queue))
	l.up = false
	var errs []error
	for _, k := range []link.Link{l.answers, l.config} {
		if k != nil {
			s.dropWatch(k.FD())
			errs = append(errs, k.Close())
		}
	}
	l.answers, l.config = nil, nil
	return errors.Join(errs...)
}

// drop releases the first n frames of the queue.
func (l *shardLink) drop(n int) {
	for _, f := range l.queue[:n] {
		f.Release()
	}
	l.queue = slices.Delete(l.queue, 0, n)
}

// dropStale drops frames that nobody but the queue holds: they have been answered, and sent later they could overwrite newer data.
func (l *shardLink) dropStale() {
	kept := l.queue[:0]
	for _, f := range l.queue {
		if f.Shared() {
			kept = append(kept, f)
		} else {
			f.Release()
		}
	}
	clear(l.queue[len(kept):])
	l.queue = kept
}

// send hands a link's queue to it; what it does not take now is tried again in the next turn.
func (s *Shard) send(l *shardLink) {
	if !l.up {
		l.drop(len(l.queue))
		return
	}
	if l.waited {
		l.dropStale()
	}
	l.waited = false
	for len(l.queue) > 0 {
		n, err := l.answers.Send(l.queue)
		l.drop(n)
		switch {
		case err == nil:
			l.waited = len(l.queue) > 0
			return
		case errors.Is(err, link.ErrDown):
			s.lower(l, err)
			return
		case errors.Is(err, link.ErrTooLong):
			l.drop(1) // lost, like any frame that does not get through
			s.raise(l)
		default:
			s.say(func() { klog.ErrorS(err, "Could not send", "link", l.name) })
			l.drop(min(1, len(l.queue)))
			return
		}
	}
}

// receive gives a link's frames to the devices they come for.
func (s *Shard) receive(l *shardLink, from link.Link) {
	defer from.Return()
	for range receiveRounds {
		n, err := from.Receive(s.received[:])
		if err != nil {
			if l.up {
				s.lower(l, err)
			}
			return
		}
		now := s.now()
		for _, b := range s.received[:n] {
			s.dispatch(now, l, b)
		}
		for _, d := range s.devices {
			d.core.Settle(now) // before the link gets the frames back
		}
		if n < receiveBatch {
			return
		}
	}
}

// dispatch finds the device by the target's address; devices check the rest.
func (s *Shard) dispatch(now time.Duration, l *shardLink, b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil {
		return
	}
	if d := s.byAddr[f.Addr()]; d != nil && d.uses(l) {
		d.core.Receive(now, l.id, b)
	}
}

// lookAfterLinks tries links that are down again, and looks for changed MTUs.
func (s *Shard) lookAfterLinks(now time.Duration) {
	s.lookAt = now + lookEvery
	for _, l := range s.links {
		switch {
		case l.local && !l.up:
			if s.wanted(l) && unix.Access(localSocket(s.cfg.RunDir, l.shelf), unix.F_OK) == nil {
				s.raise(l)
			}
		case !l.up && s.wanted(l):
			s.raise(l)
		case l.up && !l.local && now >= l.refreshAt:
			s.refresh(l)
		}
	}
}

// wanted says whether a device needs a link that is down: any for an interface, one without a path for a local socket.
func (s *Shard) wanted(l *shardLink) bool {
	for _, d := range s.devices {
		if d.uses(l) && (!l.local || !d.core.anyUp()) {
			return true
		}
	}
	return false
}

// refresh looks whether an interface is still what it was.
func (s *Shard) refresh(l *shardLink) {
	l.refreshAt = s.now() + refreshEvery
	r, ok := l.answers.(refresher)
	if !ok {
		return
	}
	mac, mtu := l.answers.MAC(), l.answers.MTU()
	if err := r.Refresh(); err != nil {
		s.lower(l, err)
		return
	}
	if rc, ok := l.config.(refresher); ok {
		if err := rc.Refresh(); err != nil {
			s.lower(l, err)
			return
		}
	}
	if mac != l.answers.MAC() || mtu != l.answers.MTU() {
		s.raise(l)
	}
}
