package initiator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// discoverShard is in the tags of discoveries, so that they do not get shards' answers, nor shards theirs.
	discoverShard = 7
	// discoverWait is how long answers are awaited if nobody says.
	discoverWait = time.Second
	// discoverMost bounds what a flood of answers can make us remember.
	discoverMost = 4096
	// askAgain is when an unanswered question is repeated, beginAgain how often everybody is asked.
	askAgain   = 100 * time.Millisecond
	beginAgain = 300 * time.Millisecond
)

// DiscoverConfig says whom to ask.
type DiscoverConfig struct {
	Interfaces []string
	// RunDir is where the sockets of targets on this host are looked for; empty: nowhere.
	RunDir string
	// Wait is how long answers are awaited; 0: 1 s.
	Wait time.Duration
	// Addr is the target asked for, parts of it possibly wild; nil: everybody.
	Addr *aoe.Addr
	// Open opens the links of an interface; nil: AF_PACKET.
	Open OpenLinks
}

// Discover asks who is there, on each interface and each socket of a target on this host, and has everybody who answers identify
// himself. It waits the whole time. An interface that cannot be used is an error only if nothing else can.
func Discover(ctx context.Context, cfg DiscoverConfig) ([]Found, error) {
	if cfg.Wait == 0 {
		cfg.Wait = discoverWait
	}
	addr := aoe.Any
	if cfg.Addr != nil {
		addr = *cfg.Addr
	}
	if cfg.Open == nil {
		cfg.Open = openPacketLinks
	}
	frames, err := pool.New(pool.Config{FrameSize: controlFrameSize, Initial: 64})
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	d := &discovery{cfg: cfg, addr: addr, frames: frames}
	err = d.open()
	if err == nil {
		err = d.run(ctx)
	}
	if err = errors.Join(err, d.close()); err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	return d.found(), nil
}

// discovery is one Discover.
type discovery struct {
	cfg     DiscoverConfig
	addr    aoe.Addr
	frames  *pool.Pool
	links   []discoverLink
	answers []*answer
	tag     uint32
}

type discoverLink struct {
	answers, config link.Link // config is nil for a local one
}

// answer is somebody who answered.
type answer struct {
	Found
	link       int
	tag        uint32 // of IDENTIFY
	identified bool
	askedAt    time.Time
}

func (d *discovery) open() error {
	var errs []error
	mac := aoe.MAC{0x02, 'a', 'o', 'e', 0, 1}
	for i, name := range d.cfg.Interfaces {
		a, c, err := d.cfg.Open(name, discoverShard)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if i == 0 {
			mac = a.MAC()
		}
		d.links = append(d.links, discoverLink{answers: a, config: c})
	}
	if d.cfg.RunDir != "" {
		sockets, err := filepath.Glob(filepath.Join(d.cfg.RunDir, "shelf-*[0-9].sock"))
		if err != nil {
			return err
		}
		for _, path := range sockets {
			if l, err := link.DialLocal(path, mac); err == nil { // else a socket left behind
				d.links = append(d.links, discoverLink{answers: l})
			}
		}
	}
	if len(d.links) == 0 {
		return errors.Join(append([]error{ErrNoInterface}, errs...)...)
	}
	return nil
}

func (d *discovery) close() error {
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.answers.Close())
		if l.config != nil {
			errs = append(errs, l.config.Close())
		}
	}
	return errors.Join(append(errs, d.frames.Close())...)
}

// run asks and listens until the time is over.
func (d *discovery) run(ctx context.Context) error {
	end := time.Now().Add(d.cfg.Wait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline
	}
	var begin time.Time
	for now := time.Now(); now.Before(end); now = time.Now() {
		if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
			return err
		}
		if !now.Before(begin) {
			d.query()
			begin = now.Add(beginAgain)
		}
		d.identify(now)
		if err := d.wait(min(end.Sub(now), 20*time.Millisecond)); err != nil {
			return err
		}
		for i, l := range d.links {
			d.receive(i, l.answers)
			if l.config != nil {
				d.receive(i, l.config)
			}
		}
	}
	return nil
}

// wait sleeps until a link may have something.
func (d *discovery) wait(most time.Duration) error {
	var fds []unix.PollFd
	for _, l := range d.links {
		fds = append(fds, unix.PollFd{Fd: int32(l.answers.FD()), Events: unix.POLLIN})
		if l.config != nil {
			fds = append(fds, unix.PollFd{Fd: int32(l.config.FD()), Events: unix.POLLIN})
		}
	}
	_, err := unix.Poll(fds, int(most/time.Millisecond)+1)
	if err != nil && err != unix.EINTR {
		return os.NewSyscallError("poll", err)
	}
	return nil
}

func (d *discovery) nextTag() uint32 {
	d.tag++
	return aoe.MakeTag(discoverShard, 0, d.tag)
}

// query asks everybody.
func (d *discovery) query() {
	for i := range d.links {
		d.send(i, func(b []byte) int {
			h := aoe.Header{Dst: aoe.Broadcast, Src: d.links[i].answers.MAC(), Addr: d.addr, Tag: d.nextTag()}
			return aoe.PutConfig(b, &h, &aoe.ConfigFields{})
		})
	}
}

// identify asks those who have not said who they are.
func (d *discovery) identify(now time.Time) {
	for _, a := range d.answers {
		if a.identified || now.Sub(a.askedAt) < askAgain {
			continue
		}
		a.askedAt = now
		if a.tag == 0 {
			a.tag = d.nextTag()
		}
		d.send(a.link, func(b []byte) int {
			h := aoe.Header{Dst: a.MAC, Src: d.links[a.link].answers.MAC(), Addr: a.Addr, Tag: a.tag}
			return aoe.PutATA(b, &h, &aoe.ATAFields{Sectors: 1, Command: aoe.ATAIdentify, Device: 0xa0})
		})
	}
}

// send sends what put writes; what the link does not take is lost, and asked again.
func (d *discovery) send(i int, put func([]byte) int) {
	f := d.frames.Get()
	if f == nil {
		return
	}
	defer f.Release()
	f.SetLen(aoe.Pad(f.Buf(), put(f.Buf())))
	// A link that is down now may be up when the question is repeated.
	_, _ = d.links[i].answers.Send([]*pool.Frame{f})
}

// receive takes what a link has.
func (d *discovery) receive(i int, from link.Link) {
	var frames [receiveBatch][]byte
	for {
		n, err := from.Receive(frames[:])
		if err != nil || n == 0 {
			return // a link that fails here has nothing to say; the others may
		}
		for _, b := range frames[:n] {
			d.take(i, b)
		}
	}
}

// take notes one frame.
func (d *discovery) take(i int, b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil || !f.IsResponse() || f.IsError() || f.Src().IsMulticast() || f.Addr().IsWild() || !d.addr.Matches(f.Addr()) {
		return
	}
	switch f.Command() {
	case aoe.CommandConfig:
		d.takeConfig(i, f)
	case aoe.CommandATA:
		d.takeIdentify(i, f)
	}
}

func (d *discovery) takeConfig(i int, f aoe.Frame) {
	config, err := f.Config()
	if err != nil || len(d.answers) >= discoverMost {
		return
	}
	text, err := config.ConfigString()
	if err != nil {
		return
	}
	for _, a := range d.answers {
		if a.link == i && a.Addr == f.Addr() && a.MAC == f.Src() {
			return
		}
	}
	d.answers = append(d.answers, &answer{link: i, Found: Found{
		Addr: f.Addr(), Interface: d.links[i].answers.Name(), MAC: f.Src(), BufferCount: int(config.BufferCount()),
		SectorCount: config.SectorCount(), Firmware: config.Firmware(), ConfigString: string(text),
	}})
}

func (d *discovery) takeIdentify(i int, f aoe.Frame) {
	ata, err := f.ATA()
	if err != nil || aoe.StatusFailed(ata.Status()) {
		return
	}
	id, err := aoe.ParseIdentify(ata.Data())
	if err != nil {
		return
	}
	for _, a := range d.answers {
		if a.link == i && a.Addr == f.Addr() && a.MAC == f.Src() && a.tag == f.Tag() {
			a.identified = true
			a.Sectors, a.Model, a.Serial = id.Sectors(), id.Model(), id.Serial()
		}
	}
}

// found is everybody, in the order of addresses, then interfaces, then MACs.
func (d *discovery) found() []Found {
	all := make([]Found, 0, len(d.answers))
	for _, a := range d.answers {
		all = append(all, a.Found)
	}
	slices.SortFunc(all, func(a, b Found) int {
		return cmp.Or(cmp.Compare(a.Addr.Shelf, b.Addr.Shelf), cmp.Compare(a.Addr.Slot, b.Addr.Slot),
			cmp.Compare(a.Interface, b.Interface), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return all
}
