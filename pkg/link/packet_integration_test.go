//go:build integration

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

var (
	macLeft  = [6]byte{0x02, 0, 0, 0, 0, 0x01}
	macRight = [6]byte{0x02, 0, 0, 0, 0, 0x02}
)

// cable puts the test's thread in a network namespace of its own, which has no name and goes with the thread and its sockets, with
// a veth pair "left" and "right".
func cable(t testing.TB, mtu int) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace (root needed): %v", err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	addCable(t, mtu)
}

func addCable(t testing.TB, mtu int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "left", mtu, net.HardwareAddr(macLeft[:])
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "right", PeerHardwareAddr: net.HardwareAddr(macRight[:]), PeerMTU: uint32(mtu)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	up(t, "left")
	up(t, "right")
	carrier(t, "left")
	carrier(t, "right")
}

// carrier waits until the interface sends: the kernel drops frames between "up" and the word that the other end is up, too.
func carrier(t testing.TB, name string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if byName(t, name).Attrs().OperState == netlink.OperUp {
			return
		}
	}
	t.Fatalf("%s has no carrier", name)
}

func byName(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func up(t testing.TB, name string) {
	t.Helper()
	if err := netlink.LinkSetUp(byName(t, name)); err != nil {
		t.Fatalf("%s up: %v", name, err)
	}
}

func openPacket(t testing.TB, name string, f Filter) *Packet {
	t.Helper()
	l, err := OpenPacket(name, PacketConfig{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, l.Close)
	return l
}

// aoe makes a pool's frame of a description.
func (f aoeFrame) from(t testing.TB, src, dst [6]byte) *pool.Frame {
	t.Helper()
	out := frames(t, f.length)[0]
	copy(out.Bytes(), f.bytes())
	copy(out.Bytes(), dst[:])
	copy(out.Bytes()[6:], src[:])
	return out
}

func sendAll(t testing.TB, l Link, fs ...*pool.Frame) {
	t.Helper()
	if n, err := l.Send(fs); n != len(fs) || err != nil {
		t.Fatalf("%s: sent %d of %d: %v", l.Name(), n, len(fs), err)
	}
}

// wait receives until it has n frames or a second has passed, and then what else is there.
func wait(t testing.TB, l Link, n int) [][]byte {
	t.Helper()
	var got [][]byte
	deadline := time.Now().Add(time.Second)
	for {
		got = append(got, receiveAll(t, l)...)
		left := time.Until(deadline)
		if len(got) >= n || left <= 0 {
			return got
		}
		fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

func request(tag uint32) aoeFrame {
	return aoeFrame{ethertype: etherType, flags: 0x10, shelf: 7, tag: tag, length: 60}
}

func response(tag uint32) aoeFrame {
	return aoeFrame{ethertype: etherType, flags: 0x18, shelf: 7, tag: tag, length: 60}
}

func tags(got [][]byte) string {
	var b strings.Builder
	for _, f := range got {
		fmt.Fprintf(&b, "%x ", binary.BigEndian.Uint32(f[offTag:]))
	}
	return strings.TrimSpace(b.String())
}

func TestPacketEachSocketGetsItsOwn(t *testing.T) {
	cable(t, 1500)
	target := openPacket(t, "right", FilterRequests(7))
	other := openPacket(t, "right", FilterRequests(8))
	shard0, shard1 := openPacket(t, "left", FilterResponses(0)), openPacket(t, "left", FilterResponses(1))
	config := openPacket(t, "left", FilterConfig())
	requestsOnLeft := openPacket(t, "left", FilterRequests(7))
	if shard0.MAC() != macLeft || target.MAC() != macRight || target.MTU() != 1500 || target.Name() != "right" {
		t.Errorf("%x %x %d %s", shard0.MAC(), target.MAC(), target.MTU(), target.Name())
	}

	everyShelf := request(0x80000002)
	everyShelf.shelf = 0xffff
	sendAll(t, shard0, request(0x80000001).from(t, macLeft, macRight), everyShelf.from(t, macLeft, [6]byte{255, 255, 255, 255, 255, 255}))
	advertisement := response(0)
	advertisement.command = 1
	sendAll(t, target, response(0x80000003).from(t, macRight, macLeft), response(0x90000004).from(t, macRight, macLeft),
		response(0x00000005).from(t, macRight, macLeft), advertisement.from(t, macRight, [6]byte{255, 255, 255, 255, 255, 255}))
	sendAll(t, target, response(0x80000006).from(t, macRight, [6]byte{2, 9, 9, 9, 9, 9})) // another host's

	// The last frame to the left tells that all before it have arrived.
	sendAll(t, target, response(0x90000007).from(t, macRight, macLeft))
	for _, want := range []struct {
		l    *Packet
		tags string
		n    int
	}{
		{shard1, "90000004 90000007", 2}, {shard0, "80000003", 1}, {config, "0", 1}, {requestsOnLeft, "", 0},
		{target, "80000001 80000002", 2}, {other, "80000002", 1},
	} {
		if got := tags(wait(t, want.l, want.n)); got != want.tags {
			t.Errorf("%s received %q, want %q", want.l.Name(), got, want.tags)
		}
	}
}

func TestPacketPads(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	short := request(0x80000001)
	short.length = 36
	long := request(0x80000002)
	long.length = 1514
	sendAll(t, from, short.from(t, macLeft, macRight), long.from(t, macLeft, macRight), short.from(t, macLeft, macRight))
	got := wait(t, to, 3)
	if len(got) != 3 || len(got[0]) != 60 || len(got[1]) != 1514 || len(got[2]) != 60 {
		t.Fatalf("received %d frames", len(got))
	}
	if !bytes.Equal(got[0][36:], make([]byte, 24)) {
		t.Errorf("padded with %x", got[0][36:])
	}
}

// tagged puts a VLAN tag into a frame, as a trunk port's peer does.
func tagged(t testing.TB, f *pool.Frame, tci uint16) *pool.Frame {
	t.Helper()
	out := frames(t, len(f.Bytes())+4)[0]
	b := append(bytes.Clone(f.Bytes()[:offEtherType]), 0x81, 0, byte(tci>>8), byte(tci))
	copy(out.Bytes(), append(b, f.Bytes()[offEtherType:]...))
	return out
}

func TestPacketForeignVLANs(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	sendAll(t, from,
		tagged(t, request(0x80000001).from(t, macLeft, macRight), 10),
		tagged(t, request(0x80000002).from(t, macLeft, macRight), 5<<13|10),
		tagged(t, request(0x80000003).from(t, macLeft, macRight), 5<<13), // a priority and no VLAN
		request(0x80000004).from(t, macLeft, macRight))
	if got := tags(wait(t, to, 2)); got != "80000003 80000004" {
		t.Errorf("received %q", got)
	}
}

func TestPacketLengths(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	big := request(0x80000002)
	big.length = 9014
	n, err := from.Send([]*pool.Frame{request(0x80000001).from(t, macLeft, macRight), big.from(t, macLeft, macRight)})
	if n == 1 && err == nil { // sendmmsg(2) tells of the second only when it is the first
		n, err = from.Send([]*pool.Frame{big.from(t, macLeft, macRight)})
		n++
	}
	if n != 1 || !errors.Is(err, ErrTooLong) {
		t.Fatalf("sent %d: %v", n, err)
	}

	for _, name := range []string{"left", "right"} {
		if err := netlink.LinkSetMTU(byName(t, name), 9000); err != nil {
			t.Fatal(err)
		}
	}
	sendAll(t, from, big.from(t, macLeft, macRight), request(0x80000003).from(t, macLeft, macRight))
	if got := tags(wait(t, to, 2)); got != "80000001 80000003" { // big is longer than the buffers of before
		t.Errorf("with buffers for 1500: %q", got)
	}
	if s, err := to.Stats(); err != nil || s.Truncated != 1 || s.Dropped != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, l := range []*Packet{from, to} {
		if err := l.Refresh(); err != nil || l.MTU() != 9000 {
			t.Fatalf("%s: MTU %d, %v", l.Name(), l.MTU(), err)
		}
	}
	sendAll(t, from, big.from(t, macLeft, macRight))
	if got := wait(t, to, 1); len(got) != 1 || len(got[0]) != 9014 {
		t.Errorf("received %d frames", len(got))
	}
}

// A full ring drops what comes, lends what it has, and goes on where it was.
func TestPacketRing(t *testing.T) {
	cable(t, 1500)
	from := openPacket(t, "left", FilterResponses(0))
	to, err := OpenPacket("right", PacketConfig{Filter: FilterRequests(7), Buffer: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	readable := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(to.FD()), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	}
	next := uint32(0x80000000)
	send := func(n int) (want string) {
		var tags []string
		for range n {
			next++
			sendAll(t, from, request(next).from(t, macLeft, macRight))
			tags = append(tags, fmt.Sprintf("%08x", next))
		}
		return strings.Join(tags, " ")
	}
	slots := to.in.slots
	if slots < 30 {
		t.Fatalf("%d slots in a ring of a block", slots)
	}
	dst := make([][]byte, 2*slots)
	for round := range 3 { // it begins elsewhere in the ring each time
		send(slots / 3)
		if n, err := to.Receive(dst); n != slots/3 || err != nil {
			t.Fatalf("round %d: received %d: %v", round, n, err)
		}
		to.Return()
		want := send(slots)
		send(7)
		n, err := to.Receive(dst)
		if got := tags(dst[:n]); got != want || err != nil {
			t.Fatalf("round %d: received %q, %v; sent %q", round, got, err, want)
		}
		send(3) // what is lent is not written to
		if got := tags(dst[:n]); got != want || !readable() {
			t.Errorf("round %d: lent frames are now %q, readable %t", round, got, readable())
		}
		to.Return()
		if readable() {
			t.Errorf("round %d: readable with an empty ring", round)
		}
		if s, err := to.Stats(); s.Dropped != uint64(10*(round+1)) || err != nil {
			t.Errorf("round %d: %+v, %v", round, s, err)
		}
	}
}

func TestPacketInterfaceDown(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	f := request(0x80000001).from(t, macLeft, macRight)
	if err := netlink.LinkSetDown(byName(t, "left")); err != nil {
		t.Fatal(err)
	}
	if n, err := from.Send([]*pool.Frame{f}); n != 0 || !errors.Is(err, ErrDown) {
		t.Errorf("send while down: %d, %v", n, err)
	}
	if err := from.Refresh(); !errors.Is(err, ErrDown) {
		t.Errorf("refresh while down: %v", err)
	}
	if _, err := OpenPacket("left", PacketConfig{Filter: FilterConfig()}); !errors.Is(err, ErrDown) {
		t.Errorf("open while down: %v", err)
	}
	up(t, "left")
	carrier(t, "left")
	carrier(t, "right")
	if err := from.Refresh(); err != nil {
		t.Errorf("refresh after: %v", err)
	}
	// A socket tells once that its interface was down.
	if n, err := from.Send([]*pool.Frame{f}); err != nil || n != 1 {
		sendAll(t, from, f)
	}
	if got := tags(wait(t, to, 1)); got != "80000001" {
		t.Errorf("after it came up: %q", got)
	}
}

// The ring for another MTU is made when the interface is up again.
func TestPacketMTUChangedWhileDown(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	long := request(0x80000001)
	long.length = 9014
	for round := range 3 {
		for _, name := range []string{"left", "right"} {
			if err := netlink.LinkSetDown(byName(t, name)); err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetMTU(byName(t, name), 9000+round); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range []*Packet{from, to} {
			if err := l.Refresh(); !errors.Is(err, ErrDown) {
				t.Errorf("refresh while down: %v", err)
			}
		}
		for _, name := range []string{"left", "right"} {
			up(t, name)
		}
		for _, name := range []string{"left", "right"} {
			carrier(t, name)
		}
		for _, l := range []*Packet{from, to} {
			if err := l.Refresh(); err != nil || l.MTU() != 9000+round {
				t.Fatalf("refresh: MTU %d, %v", l.MTU(), err)
			}
			if _, err := l.Receive(make([][]byte, 1)); err != nil && !errors.Is(err, ErrDown) {
				t.Errorf("receive: %v", err)
			}
		}
		sendAll(t, from, long.from(t, macLeft, macRight))
		if got := wait(t, to, 1); len(got) != 1 || len(got[0]) != 9014 {
			t.Errorf("round %d: received %d frames", round, len(got))
		}
	}
}

func TestPacketInterfaceMadeAnew(t *testing.T) {
	cable(t, 1500)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	f := request(0x80000001).from(t, macLeft, macRight)
	if err := netlink.LinkDel(byName(t, "left")); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Packet{from, to} {
		for range 2 {
			if n, err := l.Send([]*pool.Frame{f}); n != 0 || !errors.Is(err, ErrDown) {
				t.Errorf("send on a deleted interface: %d, %v", n, err)
			}
		}
		if err := l.Refresh(); !errors.Is(err, ErrDown) {
			t.Errorf("refresh of a deleted interface: %v", err)
		}
	}
	addCable(t, 9000)
	for _, l := range []*Packet{from, to} {
		if err := l.Refresh(); err != nil || l.MTU() != 9000 {
			t.Fatalf("refresh: MTU %d, %v", l.MTU(), err)
		}
		if _, err := l.Receive(make([][]byte, 1)); err != nil && !errors.Is(err, ErrDown) {
			t.Errorf("receive: %v", err)
		}
	}
	sendAll(t, from, f)
	if got := tags(wait(t, to, 1)); got != "80000001" {
		t.Errorf("on the new interface: %q", got)
	}
}

func TestPacketRefuses(t *testing.T) {
	cable(t, 1500)
	if _, err := OpenPacket("left", PacketConfig{}); err == nil {
		t.Error("opened without a filter")
	}
	for _, name := range []string{"", "none", strings.Repeat("x", 40)} {
		if _, err := OpenPacket(name, PacketConfig{Filter: FilterConfig()}); !errors.Is(err, ErrDown) {
			t.Errorf("open %q: %v", name, err)
		}
	}
}

func TestPacketAllocatesNothing(t *testing.T) {
	cable(t, 9000)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	short, long := request(0x80000001), request(0x80000002)
	short.length, long.length = 36, 8740
	batch := []*pool.Frame{short.from(t, macLeft, macRight), long.from(t, macLeft, macRight)}
	dst := make([][]byte, 8)
	n := testing.AllocsPerRun(200, func() {
		if n, err := from.Send(batch); n != len(batch) || err != nil {
			t.Fatal(n, err)
		}
		for got, tries := 0, 0; got < len(batch); tries++ {
			n, err := to.Receive(dst)
			if err != nil || tries > 1e6 {
				t.Fatalf("received %d of %d: %v", got, len(batch), err)
			}
			got += n
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// TestPacketThroughput is a sanity check with a bound far below what any machine does.
func TestPacketThroughput(t *testing.T) {
	cable(t, 9000)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	const rounds, window = 200, 32
	var batch []*pool.Frame
	big := request(0x80000001)
	big.length = 8740
	for range window {
		batch = append(batch, big.from(t, macLeft, macRight))
	}
	began := time.Now()
	for range rounds {
		sendAll(t, from, batch...)
		if got := wait(t, to, window); len(got) != window {
			t.Fatalf("received %d of %d", len(got), window)
		}
	}
	rate := rounds * window / time.Since(began).Seconds()
	t.Logf("%.0f frames/s of %d bytes", rate, big.length)
	if rate < 2000 {
		t.Errorf("only %.0f frames/s", rate)
	}
}

func BenchmarkPacket(b *testing.B) {
	for _, size := range []int{60, 4132, 8740} {
		b.Run(sizeName(size), func(b *testing.B) {
			cable(b, 9000)
			from, to := openPacket(b, "left", FilterResponses(0)), openPacket(b, "right", FilterRequests(7))
			var batch []*pool.Frame
			big := request(0x80000001)
			big.length = size
			for range 32 {
				batch = append(batch, big.from(b, macLeft, macRight))
			}
			dst := make([][]byte, 64)
			b.ReportAllocs()
			b.SetBytes(int64(size * len(batch)))
			for b.Loop() {
				sendAll(b, from, batch...)
				for got, tries := 0, 0; got < len(batch); tries++ {
					n, err := to.Receive(dst)
					if err != nil || tries > 1e6 {
						b.Fatalf("received %d of %d: %v", got, len(batch), err)
					}
					got += n
				}
			}
		})
	}
}
