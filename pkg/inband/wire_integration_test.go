//go:build integration

package inband_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/inband/inbandtest"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

const insideEnv = "AOE_CSI_TEST_NETNS"

// TestMain runs the tests once more in a network namespace of their own, which has no name and goes with the process.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "network namespace (root needed): %v\n", err)
		os.Exit(1)
	}
}

// cable makes a veth pair NAME-i and NAME-t that goes with the test.
func cable(t *testing.T, name string, mtu int) (ours, theirs string) {
	t.Helper()
	ours, theirs = name+"-i", name+"-t"
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = ours, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: theirs, PeerMTU: uint32(mtu)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	for _, end := range []string{ours, theirs} {
		l, err := netlink.LinkByName(end)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatalf("%s: %v", end, err)
		}
	}
	eventually(t, "the cable has a carrier", func() bool {
		l, err := netlink.LinkByName(theirs)
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
	return ours, theirs
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestTwoThousandTargets: everybody is known within 5 s, with a handful of frames for each.
func TestTwoThousandTargets(t *testing.T) {
	const shelves, slots = 8, 250
	ours, theirs := cable(t, "many", 1500)
	for shelf := range uint16(shelves) {
		var targets []*inbandtest.Target
		for slot := range uint8(slots) {
			targets = append(targets, disk(shelf, slot))
		}
		serve(t, theirs, shelf, targets)
	}
	c, err := inband.NewClient(inband.Config{Interfaces: []string{ours}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	found, err := c.Scan(t.Context(), inband.ScanConfig{Wait: 5 * time.Second})
	took := time.Since(began)
	stats := c.Stats()
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for _, a := range found {
		if a.Sectors == 0 {
			unknown++
		}
	}
	t.Logf("%d targets in %v, %d of them not identified; sent %d frames (%d again), received %d", len(found), took, unknown, stats.Sent, stats.Resent, stats.Received)
	const targets = shelves * slots
	if len(found) != targets || unknown > 0 {
		t.Errorf("found %d of %d, %d not identified", len(found), targets, unknown)
	}
	if most := uint64(2*targets + 3); stats.Sent > most {
		t.Errorf("sent %d frames, at most %d were to be expected", stats.Sent, most)
	}
	if most := uint64(5 * targets); stats.Received > most {
		t.Errorf("received %d frames, at most %d were to be expected", stats.Received, most)
	}
}

// serve answers for the targets of a shelf until the test ends.
func serve(t *testing.T, ifname string, shelf uint16, targets []*inbandtest.Target) {
	t.Helper()
	l, err := link.OpenPacket(ifname, link.PacketConfig{Filter: link.FilterRequests(shelf)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := inbandtest.Serve(l, targets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
}

// vblade runs one until the test ends.
func vblade(t *testing.T, shelf, slot int, ifname, file string) {
	t.Helper()
	cmd := exec.Command("vblade", fmt.Sprint(shelf), fmt.Sprint(slot), ifname, file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("vblade (package vblade needed): %v", err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed, as it says
	})
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s (package aoetools needed): %v: %s", name, err, out)
	}
	return string(out)
}

// TestAgreesWithAoetools: what aoe-sancheck sees and aoecfg writes is what the inventory says, and vblade can what it is said to. The
// tools that need the kernel's driver, and aoecfg's own reading, which needs a host of its own, are tested in test/vm/interop.
func TestAgreesWithAoetools(t *testing.T) {
	ours, theirs := cable(t, "agree", 9000)
	for slot := range 3 {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, make([]byte, (slot+1)<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		vblade(t, 9, slot, theirs, file)
	}
	scan := func() []inband.Answer {
		found, err := inband.Discover(t.Context(), inband.Config{Interfaces: []string{ours}}, inband.ScanConfig{Wait: 20 * time.Second, Abilities: true})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	var found []inband.Answer
	eventually(t, "three vblades", func() bool { found = scan(); return len(found) == 3 })
	for slot, a := range found {
		if a.Addr != (aoe.Addr{Shelf: 9, Slot: uint8(slot)}) || a.Sectors != uint64(slot+1)<<11 || a.SectorCount != 17 || a.BufferCount != 16 ||
			a.Reserve != inband.Yes || a.Mask != inband.Yes || !a.LBA48 || !inband.QuirksOf(a).Tested {
			t.Errorf("slot %d: %+v", slot, a)
		}
	}
	report := tool(t, "aoe-sancheck", ours)
	for _, a := range found {
		line := fmt.Sprintf("%s\t   1\t%d\t%s", a.Addr, a.SectorCount*aoe.SectorSize, ours)
		if !strings.Contains(report, line) {
			t.Errorf("%q is not in what aoe-sancheck says:\n%s", line, report)
		}
	}
	tool(t, "aoecfg", "-t", "1", "-c", "fset", "-s", "from aoecfg", "9", "1", ours)
	if a := scan()[1]; a.ConfigString != "from aoecfg" {
		t.Errorf("aoecfg wrote, the inventory reads %q", a.ConfigString)
	}
	t.Logf("%d vblades: aoe-sancheck, aoecfg and the inventory agree on addresses, frame sizes and config strings", len(found))
}
