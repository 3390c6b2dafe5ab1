//go:build integration

package link

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// Frames of every length arrive as they were, in their order: those in pages, from an interface that gathers and from one that does not, and
// those that the socket for pages did not take.
func TestPacketPaged(t *testing.T) {
	cable(t, 9000)
	from, to := openPacket(t, "left", FilterResponses(0)), openPacket(t, "right", FilterRequests(7))
	if from.long == nil || !from.long.gathers {
		t.Fatal("veth gathers, and is not used so")
	}
	mixed(t, from, to)
	long := request(0x80000001)
	long.length = 9014
	if n, errno := from.long.out.send(from.long.fd, []*pool.Frame{long.from(t, macLeft, macRight)}); n != 1 || len(wait(t, to, 1)) != 1 {
		t.Errorf("the socket for pages sent %d: %v", n, errno)
	}
	if err := from.long.bind(0); err != nil { // it cannot send from there
		t.Fatal(err)
	}
	if n, errno := from.long.out.send(from.long.fd, []*pool.Frame{long.from(t, macLeft, macRight)}); n != 0 {
		t.Errorf("bound to nothing it sent %d: %v", n, errno)
	}
	mixed(t, from, to)

	dontGather(t, from, "left")
	if err := from.Refresh(); err != nil {
		t.Fatal(err)
	}
	if from.long.gathers {
		t.Error("used as if it gathered")
	}
	mixed(t, from, to)
	from.long.gathers = true // as before the next Refresh
	if err := from.long.bind(from.ifindex); err != nil {
		t.Fatal(err)
	}
	mixed(t, from, to)
}

// mixed sends long and short frames in turn.
func mixed(t *testing.T, from, to *Packet) {
	t.Helper()
	var sent []*pool.Frame
	for i, length := range []int{60, wholeMost, wholeMost + 1, 16*512 + 36, 17*512 + 36, 60, 60, 9014, 1514} {
		d := request(0x80000001 + uint32(i))
		d.length = length
		f := d.from(t, macLeft, macRight)
		for k := headerLen; k < length; k++ {
			f.Bytes()[k] = byte(rand.Uint32())
		}
		sent = append(sent, f)
	}
	sendAll(t, from, sent...)
	got := wait(t, to, len(sent))
	if len(got) != len(sent) {
		t.Fatalf("received %d of %d", len(got), len(sent))
	}
	for i, f := range sent {
		if !bytes.Equal(got[i], f.Bytes()) {
			t.Errorf("frame %d of %d bytes arrived otherwise, with %d", i, len(f.Bytes()), len(got[i]))
		}
	}
}

// dontGather is ethtool -K NAME sg off (ETHTOOL_SSG).
func dontGather(t *testing.T, l *Packet, name string) {
	t.Helper()
	value := struct{ command, data uint32 }{command: 0x19}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		t.Fatal(errno)
	}
}
