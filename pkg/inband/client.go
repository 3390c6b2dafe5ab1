package inband

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// Shard is in the tags of this package's frames, so that shards of an initiator on the same host do not get their answers.
const Shard = aoe.MaxShards - 1

const (
	// firstTimeout is the time until a frame is sent again; it doubles up to mostTimeout.
	firstTimeout = 200 * time.Millisecond
	mostTimeout  = 2 * time.Second
	// sleepMost is the longest sleep of the loop; links that are down are tried again at that rate.
	sleepMost    = time.Second
	receiveBatch = 64
)

// Errors of exchanges.
var (
	// ErrNoInterface: none of the interfaces can be used.
	ErrNoInterface = errors.New("no usable interface")
	// ErrNoAnswer: a frame was sent several times and not answered.
	ErrNoAnswer = errors.New("no answer")
	// ErrClosed: the client is closed.
	ErrClosed = errors.New("client is closed")
)

// RefusedError is an AoE error packet.
type RefusedError struct{ Code aoe.ErrorCode }

// Error implements error.
func (e *RefusedError) Error() string { return "target refused: " + e.Code.String() }

// OpenLinks opens the links of an interface: answers, through which requests are sent, too, and config responses, asked for or not.
type OpenLinks func(ifname string) (answers, config link.Link, err error)

// openPacketLinks is the real one.
func openPacketLinks(ifname string) (answers, config link.Link, err error) {
	a, err := link.OpenPacket(ifname, link.PacketConfig{Filter: link.FilterResponses(Shard)})
	if err != nil {
		return nil, nil, err
	}
	c, err := link.OpenPacket(ifname, link.PacketConfig{Filter: link.FilterConfig(), Buffer: 1 << 20, Longest: link.StandardLen})
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, c, nil
}

// Config says where a client speaks.
type Config struct {
	Interfaces []string
	// RunDir is where the sockets of targets on this host are looked for; empty: nowhere.
	RunDir string
	// Open opens the links of an interface; nil: AF_PACKET.
	Open OpenLinks
}

// port is an interface, or a socket to a target on this host. It belongs to the loop but for name, mac and mtu.
type port struct {
	name            string
	shelf           uint16 // that a socket leads to
	mac             aoe.MAC
	mtu             int
	answers, config link.Link // config is nil for a socket
}

// Stats counts frames since the client was made.
type Stats struct{ Sent, Received, Resent uint64 }

// Client exchanges frames with targets. Its methods may be called at the same time.
type Client struct {
	ports   []*port
	frames  *pool.Pool // the loop's
	wakeFD  int
	waker   *os.File // of wakeFD
	done    chan struct{}
	failure error // of the loop, before done is closed

	sent, received, resent atomic.Uint64

	mu       sync.Mutex // guards what follows
	closing  bool
	tag      uint32
	posted   []*exchange
	waiting  map[uint32]*exchange // by tag
	listener func(Answer)
}

// exchange is a request and whoever waits for its answer.
type exchange struct {
	port    *port
	bytes   []byte
	tag     uint32
	addr    aoe.Addr
	mac     aoe.MAC
	command aoe.Command
	tries   int // left
	timeout time.Duration
	due     time.Time
	once    bool // nobody waits
	result  chan []byte
}

// NewClient opens what can be opened and starts the loop. Close ends it. ErrNoInterface, with the reasons, if nothing could be opened.
func NewClient(cfg Config) (*Client, error) {
	if cfg.Open == nil {
		cfg.Open = openPacketLinks
	}
	c := &Client{done: make(chan struct{}), waiting: map[uint32]*exchange{}, tag: rand.Uint32(), wakeFD: -1}
	reasons := c.open(cfg)
	if len(c.ports) == 0 {
		return nil, errors.Join(append([]error{ErrNoInterface}, reasons...)...)
	}
	size := 0
	for _, p := range c.ports {
		size = max(size, p.mtu+aoe.EthernetLen)
	}
	var err error
	if c.frames, err = pool.New(pool.Config{FrameSize: max(size, aoe.MinFrameLen), Initial: 4}); err != nil {
		return nil, errors.Join(err, c.closePorts())
	}
	if c.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), c.closePorts(), c.frames.Close())
	}
	c.waker = os.NewFile(uintptr(c.wakeFD), "client's eventfd")
	go c.run()
	return c, nil
}

func (c *Client) open(cfg Config) (reasons []error) {
	mac := aoe.MAC{0x02, 'a', 'o', 'e', 0, 1}
	for i, name := range cfg.Interfaces {
		a, config, err := cfg.Open(name)
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		if i == 0 {
			mac = a.MAC()
		}
		c.ports = append(c.ports, &port{name: name, mac: a.MAC(), mtu: a.MTU(), answers: a, config: config})
	}
	if cfg.RunDir == "" {
		return reasons
	}
	sockets, err := filepath.Glob(filepath.Join(cfg.RunDir, "shelf-*[0-9].sock"))
	if err != nil {
		return append(reasons, err)
	}
	for _, path := range sockets {
		var shelf uint16
		if _, err := fmt.Sscanf(filepath.Base(path), "shelf-%d.sock", &shelf); err != nil {
			continue // something else
		}
		if l, err := link.DialLocal(path, mac); err == nil { // else a socket left behind
			c.ports = append(c.ports, &port{name: l.Name(), shelf: shelf, mac: l.MAC(), mtu: l.MTU(), answers: l})
		}
	}
	return reasons
}

func (c *Client) closePorts() error {
	var errs []error
	for _, p := range c.ports {
		errs = append(errs, p.answers.Close())
		if p.config != nil {
			errs = append(errs, p.config.Close())
		}
	}
	return errors.Join(errs...)
}

// Close ends the loop; exchanges under way fail with ErrClosed. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.wake()
	<-c.done
	return c.failure
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	return Stats{Sent: c.sent.Load(), Received: c.received.Load(), Resent: c.resent.Load()}
}

// MACs are the addresses of the client's interfaces.
func (c *Client) MACs() []aoe.MAC {
	var macs []aoe.MAC
	for _, p := range c.ports {
		macs = append(macs, p.mac)
	}
	return macs
}

// Listen has f called with every config response, asked for or not, until it is replaced; nil ends it. f is called on the loop and must
// not wait. It returns who listened before.
func (c *Client) Listen(f func(Answer)) (before func(Answer)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.listener = c.listener, f
	return before
}

// MaxSectors is how many sectors fit in a frame on a path, as far as this end and the target's word go.
func (c *Client) MaxSectors(a Answer) int {
	p := c.port(a.Path)
	if p == nil {
		return 1
	}
	return max(1, min(a.SectorCount, aoe.MaxSectors(p.mtu)))
}

// wake makes the loop look at what was posted.
func (c *Client) wake() {
	one := [8]byte{1}
	_, _ = c.waker.Write(one[:]) // a counter that is full, or a loop that has ended, needs no waking
}

// port finds the interface, or the socket, that a path begins with.
func (c *Client) port(to Path) *port {
	for _, p := range c.ports {
		if p.name == to.Interface && (p.config != nil || p.shelf == to.Addr.Shelf) {
			return p
		}
	}
	return nil
}

// post hands an exchange to the loop after put has written its frame.
func (c *Client) post(x *exchange, put func(b []byte, h *aoe.Header) int) error {
	h := aoe.Header{Dst: x.mac, Src: x.port.mac, Addr: x.addr}
	b := make([]byte, x.port.mtu+aoe.EthernetLen)
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return ErrClosed
	}
	for x.tag == 0 || c.waiting[x.tag] != nil {
		c.tag++
		x.tag = aoe.MakeTag(Shard, 0, c.tag)
	}
	h.Tag = x.tag
	n := put(b, &h)
	x.bytes, x.command = b[:aoe.Pad(b, n)], h.Command
	c.posted = append(c.posted, x)
	if !x.once {
		c.waiting[x.tag] = x
	}
	c.mu.Unlock()
	c.wake()
	return nil
}

// exchange sends a request to a target's path and returns the answer; RefusedError if that is an error.
func (c *Client) exchange(ctx context.Context, to Path, how asking, put func(b []byte, h *aoe.Header) int) (aoe.Frame, error) {
	p := c.port(to)
	if p == nil {
		return nil, fmt.Errorf("%s over %s: %w", to.Addr, to.Interface, ErrNoInterface)
	}
	x := &exchange{port: p, addr: to.Addr, mac: to.MAC, tries: how.tries, timeout: how.timeout, result: make(chan []byte, 1)}
	if err := c.post(x, put); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		c.forget(x)
		return nil, context.Cause(ctx)
	case <-c.done:
		return nil, ErrClosed
	case b := <-x.result:
		if b == nil {
			return nil, fmt.Errorf("%s at %s over %s: %w", to.Addr, to.MAC, to.Interface, ErrNoAnswer)
		}
		if f := aoe.Frame(b); f.IsError() {
			return f, &RefusedError{Code: f.ErrorCode()}
		}
		return b, nil
	}
}

// forget ends an exchange that nobody waits for any more: it is not sent again.
func (c *Client) forget(x *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, x.tag)
}

// broadcast sends a config query to everybody, over every interface.
func (c *Client) broadcast(addr aoe.Addr) error {
	for _, p := range c.ports {
		x := &exchange{port: p, addr: addr, mac: aoe.Broadcast, once: true}
		err := c.post(x, func(b []byte, h *aoe.Header) int { return aoe.PutConfig(b, h, &aoe.ConfigFields{}) })
		if err != nil {
			return err
		}
	}
	return nil
}
