//go:build integration

package target

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// Here the target serves one end of a real cable, "left"; who is at "right" varies.

var (
	macLeft  = aoe.MAC{0x02, 0, 0, 0, 0, 0x01}
	macRight = aoe.MAC{0x02, 0, 0, 0, 0, 0x02}
)

// cable puts the test's thread into a network namespace of its own, without a name, which goes with the thread.
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
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "left", mtu, net.HardwareAddr(macLeft[:])
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "right", PeerHardwareAddr: net.HardwareAddr(macRight[:]), PeerMTU: uint32(mtu),
	})
	if err != nil {
		t.Fatalf("add veth: %v", err)
	}
	for _, name := range []string{"left", "right"} {
		if err := netlink.LinkSetUp(interfaceOf(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if interfaceOf(t, "left").Attrs().OperState == netlink.OperUp && interfaceOf(t, "right").Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no carrier")
		}
	}
}

func interfaceOf(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func openPacket(t testing.TB, name string, f link.Filter) *link.Packet {
	t.Helper()
	l, err := link.OpenPacket(name, link.PacketConfig{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// onWire has the rig serve "left", too; the result is Serve's.
func (r *rig) onWire() <-chan error {
	r.t.Helper()
	l := openPacket(r.t, "left", link.FilterRequests(testShelf))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		served <- r.shelf.Serve(ctx, l)
		close(ended)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return served
}

// wireClient sends from "right".
func wireClient(t testing.TB) *client {
	t.Helper()
	c := newClient(t, openPacket(t, "right", link.FilterResponses(1)), macRight, macLeft)
	c.tag = aoe.MakeTag(1, 0, 100)
	return c
}

func TestWire(t *testing.T) {
	for _, test := range []struct {
		mtu, sectors int
	}{{1500, 2}, {9000, 17}} {
		cable(t, test.mtu)
		r := newRig(t)
		r.lun(OpenAccess)
		r.onWire()
		c := wireClient(t)
		config := wantConfig(t, c.call(c.config(aoe.ConfigRead, "")), "aoe-csi:"+testGen)
		if config.SectorCount() != test.sectors {
			t.Fatalf("MTU %d: %d sectors", test.mtu, config.SectorCount())
		}
		data := block(0x5a, test.sectors)
		wantOK(t, c.call(c.write(0, 10, data)))
		wantOK(t, c.call(c.flush(0)))
		got, err := wantOK(t, c.call(c.read(0, 10, uint8(test.sectors)))).Payload(test.sectors)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("MTU %d: read differs: %v", test.mtu, err)
		}
		wantError(t, c.call(c.read(0, 0, uint8(test.sectors+1))), aoe.ErrorArgument)
	}
}

// The programs of aoetools on an open LUN.
func TestTools(t *testing.T) {
	cable(t, 9000)
	r := newRig(t)
	r.lun(OpenAccess)
	r.onWire()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"aoeping", "7", "3", "right"}, ""},
		{[]string{"aoeping", "-I", "7", "3", "right"}, testGen},
		{[]string{"aoecfg", "-c", "read", "7", "3", "right"}, "aoe-csi:" + testGen},
		{[]string{"aoecfg", "-c", "fset", "-s", "mine", "7", "3", "right"}, ""},
		{[]string{"aoecfg", "-c", "read", "7", "3", "right"}, "mine"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		out, err := exec.CommandContext(ctx, test.args[0], test.args[1:]...).CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("%v: %v\n%s", test.args, err, out)
		}
	}
}

func TestSecondTargetIsRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		number uint16
		setUp  func(*rig)
		want   error
	}{
		{"empty shelf", testShelf, func(*rig) {}, ErrDuplicate},
		{"hidden LUNs only", testShelf, func(r *rig) { r.lun(ManagedAccess) }, ErrDuplicate},
		{"open LUN", testShelf, func(r *rig) { r.lun(OpenAccess) }, ErrDuplicate},
		{"other number", 8, func(r *rig) { r.lun(OpenAccess) }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			cable(t, 1500)
			r := newRig(t)
			test.setUp(r)
			r.onWire()
			second, err := Open(Config{Dir: t.TempDir(), Number: &test.number})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = second.Close() }()
			l := openPacket(t, "right", link.FilterResponses(ProbeShard))
			defer func() { _ = l.Close() }()
			if err := second.Probe(context.Background(), l, []aoe.MAC{macRight}); !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if err := second.Probe(context.Background(), l, []aoe.MAC{macLeft}); err != nil {
				t.Fatalf("own address: %v", err)
			}
		})
	}
}

// vblade has our number: any kind of target counts.
func TestForeignTargetIsFound(t *testing.T) {
	cable(t, 1500)
	file := t.TempDir() + "/disk"
	if out, err := exec.Command("truncate", "-s", "1M", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	vblade := exec.Command("vblade", "7", "0", "right", file)
	if err := vblade.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = vblade.Process.Kill()
		_ = vblade.Wait()
	}()
	r := newRig(t)
	for deadline := time.Now().Add(10 * time.Second); ; { // until vblade listens
		l := openPacket(t, "left", link.FilterResponses(ProbeShard))
		err := r.shelf.Probe(context.Background(), l, nil)
		_ = l.Close()
		if errors.Is(err, ErrDuplicate) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("vblade not found: %v", err)
		}
	}
}

func TestStrangerOnTheWire(t *testing.T) {
	cable(t, 9000)
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	r.onWire()
	c := wireClient(t)
	c.silent(c.read(0, 0, 1))
	c.silent(c.config(aoe.ConfigRead, ""))
	if o := c.open(aoe.OpenSession, uuidA, 1, testGen); o.Status() != aoe.OpenNotAdmitted {
		t.Fatalf("OPEN: %v", o.Status())
	}
	r.admit("node-a", macRight)
	epoch := c.session(uuidA, 2)
	wantOK(t, c.call(c.write(aoe.MakeTag(1, epoch, 1), 0, block(1, 16))))
}

func TestInterfaceGoesDown(t *testing.T) {
	cable(t, 1500)
	r := newRig(t)
	r.lun(OpenAccess)
	served := r.onWire()
	c := wireClient(t)
	wantOK(t, c.call(c.read(0, 0, 1)))
	if err := netlink.LinkSetDown(interfaceOf(t, "left")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-served:
		if !errors.Is(err, link.ErrDown) {
			t.Fatalf("serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still served")
	}
}
