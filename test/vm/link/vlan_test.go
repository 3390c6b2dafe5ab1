//go:build vm

// Package link_test tries packet links on VLAN interfaces, which many machines' kernels have no module for.
package link_test

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

func run(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func open(t *testing.T, name string, f link.Filter) *link.Packet {
	t.Helper()
	l, err := link.OpenPacket(name, link.PacketConfig{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// receive waits for n frames, at most a second, and returns the tags of all that came.
func receive(t *testing.T, l *link.Packet, n int) string {
	t.Helper()
	var tags []string
	dst := make([][]byte, 8)
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		got, err := l.Receive(dst)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range dst[:got] {
			tags = append(tags, fmt.Sprint(binary.BigEndian.Uint32(b[20:])&^aoe.TagOwn))
		}
		if got > 0 {
			continue
		}
		if len(tags) >= n {
			break
		}
		fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 1000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
	return strings.Join(tags, " ")
}

// TestVLAN: a link on a VLAN interface and one on its base each receive their own VLAN's frames and no other's.
func TestVLAN(t *testing.T) {
	run(t, "ip link add left type veth peer name right")
	t.Cleanup(func() { run(t, "ip link del left") })
	for _, line := range []string{
		"ip link set left up", "ip link set right up",
		"ip link add link left name left.10 type vlan id 10", "ip link set left.10 up",
		"ip link add link left name left.20 type vlan id 20", "ip link set left.20 up",
		"ip link add link right name right.10 type vlan id 10", "ip link set right.10 up",
	} {
		run(t, line)
	}
	for !strings.Contains(run(t, "ip link show left"), "state UP") {
		time.Sleep(10 * time.Millisecond)
	}
	base, ten := open(t, "right", link.FilterRequests(7)), open(t, "right.10", link.FilterRequests(7))

	p, err := pool.New(pool.Config{FrameSize: 1514, Initial: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := p.Get()
	defer func() {
		f.Release()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	// The order ends with what must arrive, so that what must not has had its time.
	for i, name := range []string{"left.20", "left", "left.10", "left.20", "left", "left.10"} {
		from := open(t, name, link.FilterConfig())
		h := aoe.Header{Dst: base.MAC(), Src: from.MAC(), Addr: aoe.Addr{Shelf: 7, Slot: 3}, Tag: aoe.TagOwn | uint32(i)}
		f.SetLen(aoe.PutConfig(f.Buf(), &h, &aoe.ConfigFields{}))
		if n, err := from.Send([]*pool.Frame{f}); n != 1 || err != nil {
			t.Fatalf("send on %s: %d, %v", name, n, err)
		}
	}
	if got := receive(t, base, 2); got != "1 4" {
		t.Errorf("the base interface received %q", got)
	}
	if got := receive(t, ten, 2); got != "2 5" {
		t.Errorf("VLAN 10 received %q", got)
	}
}
