package linktest

import (
	"bytes"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// Epoch is when the virtual clock starts.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Stats counts frames, each once per receiver.
type Stats struct {
	Sent, Delivered, Lost, Duplicated int
	// Overflowed frames found a receiver's queue full; Unrouted ones had no receiver.
	Overflowed, Unrouted int
}

// Network is one segment. Its methods may be called from any goroutine.
type Network struct {
	mu      sync.Mutex // guards all below and the state of the links; never held while a frame is released
	dice    *rand.Rand
	profile Profile
	now     time.Time // virtual
	real    bool
	links   []*Link
	flights flights
	seq     uint64
	spare   [][]byte // buffers to use again
	blocked map[[2][6]byte]bool
	tap     func(frame []byte) bool
	mangler func(frame []byte) []byte
	stats   Stats
	wrong   []error
	kick    chan struct{} // wakes the goroutine of Start
}

// NewNetwork makes a segment whose dice are seeded.
func NewNetwork(seed int64, p Profile) *Network {
	return &Network{
		dice: rand.New(rand.NewPCG(uint64(seed), 0x616f65)), profile: p.withDefaults(), now: Epoch,
		blocked: make(map[[2][6]byte]bool), kick: make(chan struct{}, 1),
	}
}

// SetProfile changes the treatment of frames sent from now on. A changed MTU shows at the links.
func (n *Network) SetProfile(p Profile) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.profile = p.withDefaults()
}

// SetTap has every sent frame shown to f, which borrows it; the frame is lost if f says false. f must not call the network.
func (n *Network) SetTap(f func(frame []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

// SetMangler has f change frames on their way: it gets a copy of its own for each receiver and returns what arrives, the same bytes or
// a part of them. f must not call the network.
func (n *Network) SetMangler(f func(frame []byte) []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mangler = f
}

// Block loses every frame from one address to the other, one way, until Unblock. Frames on their way arrive.
func (n *Network) Block(from, to [6]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blocked[[2][6]byte{from, to}] = true
}

// Unblock ends Block.
func (n *Network) Unblock(from, to [6]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.blocked, [2][6]byte{from, to})
}

// Stats counts since the beginning.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Err is non-nil if a frame was changed while the network held it.
func (n *Network) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%d frames changed while the network held them, first: %w", len(n.wrong), n.wrong[0])
}

// Link plugs in a socket on the interface with this address. Several sockets on one interface each get a copy of what is received,
// and nothing of what they send.
func (n *Network) Link(mac [6]byte) *Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &Link{net: n, mac: mac, name: fmt.Sprintf("test%d", len(n.links)), fd: -1}
	n.links = append(n.links, l)
	return l
}

// Now is the network's clock.
func (n *Network) Now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.clock()
}

func (n *Network) clock() time.Time {
	if n.real {
		return time.Now()
	}
	return n.now
}

// flight is a frame on its way to a receiver.
type flight struct {
	at  time.Time
	seq uint64
	to  *Link
	b   []byte
}

// flights is a heap, the next arrival first.
type flights []flight

func (f flights) Len() int      { return len(f) }
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f flights) Less(i, j int) bool {
	if f[i].at.Equal(f[j].at) {
		return f[i].seq < f[j].seq
	}
	return f[i].at.Before(f[j].at)
}

// Push implements heap.Interface.
func (f *flights) Push(x any) { *f = append(*f, x.(flight)) }

// Pop implements heap.Interface.
func (f *flights) Pop() any {
	last := len(*f) - 1
	x := (*f)[last]
	(*f)[last] = flight{}
	*f = (*f)[:last]
	return x
}

// route sends b, which it borrows, to whom its destination says.
func (n *Network) route(from *Link, b []byte, now time.Time) {
	dst := [6]byte(b[0:6])
	found := false
	for _, to := range n.links {
		if to.mac == from.mac || to.closed || (dst != to.mac && dst[0]&1 == 0) {
			continue
		}
		found = true
		n.stats.Sent++
		f := n.profile.roll(n.dice)
		if f.lost || n.blocked[[2][6]byte{from.mac, to.mac}] || len(b) > n.profile.PathMTU+ethernetLen {
			n.stats.Lost++
			continue
		}
		n.fly(to, b, now.Add(f.first))
		if f.twice {
			n.stats.Duplicated++
			n.fly(to, b, now.Add(f.second))
		}
	}
	if !found {
		n.stats.Unrouted++
	}
}

func (n *Network) fly(to *Link, b []byte, at time.Time) {
	n.seq++
	b = append(n.buffer(), b...)
	if n.mangler != nil {
		b = n.mangler(b)
	}
	heap.Push(&n.flights, flight{at: at, seq: n.seq, to: to, b: b})
}

// buffer is an empty one.
func (n *Network) buffer() []byte {
	if last := len(n.spare) - 1; last >= 0 {
		b := n.spare[last]
		n.spare = n.spare[:last]
		return b[:0]
	}
	return make([]byte, 0, n.profile.MTU+ethernetLen)
}

// deliver lets arrive what is due.
func (n *Network) deliver(now time.Time) {
	for len(n.flights) > 0 && !n.flights[0].at.After(now) {
		f := heap.Pop(&n.flights).(flight)
		switch {
		case f.to.closed || f.to.down:
			n.stats.Lost++
		case f.to.filter != nil && !f.to.filter(f.b):
			n.stats.Delivered++
		case len(f.to.inbox) >= n.profile.Queue:
			n.stats.Overflowed++
		default:
			n.stats.Delivered++
			f.to.inbox = append(f.to.inbox, f.b)
			f.to.signal()
			continue
		}
		n.spare = append(n.spare, f.b)
	}
}

// check notes a frame that is not any more what it was when it was sent.
func (n *Network) check(l *Link, h *held) {
	if !bytes.Equal(h.frame.Bytes(), h.sent) {
		n.wrong = append(n.wrong, fmt.Errorf("frame %d of %s, sent as %x, is %x", h.frame.ID(), l.name, head(h.sent), head(h.frame.Bytes())))
	}
}

func head(b []byte) []byte { return b[:min(len(b), 48)] }

var _ link.Link = (*Link)(nil)
