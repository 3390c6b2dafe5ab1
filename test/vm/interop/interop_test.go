//go:build vm

// Package interop runs our initiator against vblade, and the kernel's aoe driver and aoetools against our target.
package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestVblade: our initiator makes a vblade a device with a file system, under a verified load.
func TestVblade(t *testing.T) {
	l := lab.New(t)
	server, initiator := l.Host("v"), l.Host("a").Initiator()
	server.Vblade(3, 1, 256<<20)
	l.Eventually(10*time.Second, "vblade on the wire", func() error {
		out, err := initiator.CLI(10*time.Second, "discover")
		if err != nil || !strings.Contains(out, "e3.1") {
			return fmt.Errorf("discover does not show e3.1: %w\n%s", err, out)
		}
		return nil
	})
	dev := initiator.Attach("e3.1")
	mountAndVerify(t, l, dev, "ext4", 15*time.Second)
	t.Log(l.Run(lab.Binary(), "stat", "--socket", initiator.Socket()))
	initiator.Detach("e3.1")
	if _, err := initiator.CLI(5*time.Second, "stat", "e3.1"); err == nil {
		t.Error("stat still shows e3.1 after detach")
	}
}

// TestKernelDriver: the kernel's own initiator on an open LUN of our target.
func TestKernelDriver(t *testing.T) {
	l := lab.New(t)
	target, guest := l.Host("t").Target(7), l.Guest()
	target.MustLun("create", "e7.0", "--size", "512Mi", "--access", "open")
	l.Run("modprobe", "aoe", "aoe_iflist="+guest.If)
	t.Cleanup(func() { _, _ = l.TryFor(30*time.Second, "rmmod", "aoe") })
	dev := "/dev/etherd/e7.0"
	l.Eventually(20*time.Second, dev, func() error {
		l.Run("aoe-discover")
		_, err := os.Stat(dev)
		return err
	})
	l.Eventually(20*time.Second, "aoe-stat", func() error {
		out := l.Run("aoe-stat")
		if !strings.Contains(out, "e7.0") || !strings.Contains(out, "up") {
			return fmt.Errorf("e7.0 is not up:\n%s", out)
		}
		t.Log(out)
		return nil
	})
	mountAndVerify(t, l, dev, "xfs", 15*time.Second)

	// The kernel's driver comes back by itself after the target was killed.
	fio := guest.Start(lab.FioVerify("kernel-killed", dev, 10*time.Second)...)
	time.Sleep(3 * time.Second)
	target.Kill()
	target.StartAgain()
	if out, err := fio.Wait(3 * time.Minute); err != nil {
		t.Fatalf("fio on the kernel's driver over a kill of the target: %v\n%s", err, out)
	}
}

// TestAoetools: aoecfg and aoeping on an open LUN of our target.
func TestAoetools(t *testing.T) {
	l := lab.New(t)
	target, client := l.Host("t").Target(7), l.Host("c")
	target.MustLun("create", "e7.5", "--size", "64Mi", "--access", "open")
	cfg := func(args ...string) string {
		out, err := client.Try(20*time.Second, append([]string{"aoecfg", "-t", "2"}, args...)...)
		if err != nil {
			t.Fatalf("aoecfg %v: %v\n%s", args, err, out)
		}
		t.Logf("aoecfg %v: %s", args, out)
		return out
	}
	cfg("-c", "fset", "-s", "owner=lab", "7", "5", client.If)
	if out := cfg("7", "5", client.If); !strings.Contains(out, "owner=lab") {
		t.Errorf("aoecfg read does not show what was set: %s", out)
	}
	target.Kill()
	target.StartAgain()
	if out := cfg("7", "5", client.If); !strings.Contains(out, "owner=lab") {
		t.Errorf("the config string did not survive a kill of the target: %s", out)
	}
	out, err := client.Try(20*time.Second, "aoeping", "-I", "7", "5", client.If)
	if err != nil {
		t.Fatalf("aoeping: %v\n%s", err, out)
	}
	t.Logf("aoeping: %s", out)
}

// mountAndVerify makes a file system on the device, runs a verified load in it, and checks it.
func mountAndVerify(t *testing.T, l *lab.Lab, dev, fs string, d time.Duration) {
	t.Helper()
	l.Run("mkfs."+fs, dev)
	dir := filepath.Join(l.Dir(), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.Run("mount", "-t", fs, dev, dir)
	argv := lab.FioVerify("verify", filepath.Join(dir, "data"), d)
	out, err := l.TryFor(d+2*time.Minute, argv[0], argv[1:]...)
	_, uerr := l.TryFor(time.Minute, "umount", dir)
	if err != nil || uerr != nil {
		t.Fatalf("fio on %s over %s: %v; umount: %v\n%s", fs, dev, err, uerr, out)
	}
	if fs == "ext4" {
		l.Run("e2fsck", "-fn", dev)
	} else {
		l.Run("xfs_repair", "-n", dev)
	}
}
