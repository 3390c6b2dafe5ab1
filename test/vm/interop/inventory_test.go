//go:build vm

package interop

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// seen is a target as somebody sees it.
type seen struct {
	target  string // "e3.1"
	mac     string
	bytes   uint64
	sectors uint64 // in a frame
}

// ours is what `aoe-csi discover` sees, in the order of addresses, and the config strings.
func ours(t *testing.T, i *lab.Initiator) (all []seen, configs map[string]string) {
	t.Helper()
	out, err := i.CLI(time.Minute, "discover", "--wait", "5s", "-o", "json")
	if err != nil {
		t.Fatalf("discover: %v\n%s", err, out)
	}
	var answer struct {
		Targets []struct {
			Target      struct{ Shelf, Slot int }
			MAC         string `json:"mac"`
			SizeBytes   uint64 `json:"sizeBytes,string"`
			SectorCount uint64
			Config      string
		}
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("discover: %v\n%s", err, out)
	}
	configs = map[string]string{}
	for _, found := range answer.Targets {
		s := seen{fmt.Sprintf("e%d.%d", found.Target.Shelf, found.Target.Slot), found.MAC, found.SizeBytes, found.SectorCount}
		config, err := base64.StdEncoding.DecodeString(found.Config)
		if err != nil {
			t.Fatal(err)
		}
		all, configs[s.target] = append(all, s), string(config)
	}
	return all, configs
}

// kernels is what the kernel's driver sees: aoe-stat's list, and sysfs for what that rounds.
func kernels(t *testing.T, l *lab.Lab) (all []seen) {
	t.Helper()
	for line := range strings.Lines(l.Run("aoe-stat")) {
		fields := strings.Fields(line) // e3.1 0.067GB aoe0 8704 up
		if len(fields) < 5 || fields[4] != "up" {
			continue
		}
		payload, err := strconv.ParseUint(fields[3], 10, 64)
		if err != nil {
			t.Fatalf("aoe-stat: %v: %s", err, line)
		}
		dir := "/sys/block/etherd!" + fields[0]
		mac, err1 := os.ReadFile(filepath.Join(dir, "mac"))
		size, err2 := os.ReadFile(filepath.Join(dir, "size"))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		blocks, err := strconv.ParseUint(strings.TrimSpace(string(size)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		mega := blocks * 512 / 1e6 // aoe-stat cuts off
		if want := fmt.Sprintf("%d.%03dGB", mega/1000, mega%1000); fields[1] != want {
			t.Errorf("aoe-stat says that %s has %s, sysfs %s", fields[0], fields[1], want)
		}
		all = append(all, seen{fields[0], colons(strings.TrimSpace(string(mac))), blocks * 512, payload / 512})
	}
	slices.SortFunc(all, func(a, b seen) int { return strings.Compare(a.target, b.target) })
	return all
}

// colons writes a MAC as everybody else does.
func colons(mac string) string {
	if len(mac) != 12 {
		return mac
	}
	var parts []string
	for i := 0; i < 12; i += 2 {
		parts = append(parts, mac[i:i+2])
	}
	return strings.Join(parts, ":")
}

// TestInventoryAgrees: aoe-discover with aoe-stat, aoe-sancheck and aoecfg see the same targets on a segment as our inventory, with the same
// sizes, MAC addresses and frame sizes. A LUN that nobody is admitted to is seen by none of them.
func TestInventoryAgrees(t *testing.T) {
	l := lab.New(t)
	initiator, vblades, guest := l.Host("a").Initiator(), l.Host("v"), l.Guest()
	want := map[string]uint64{"e3.0": 8 << 20, "e3.1": 64 << 20, "e3.2": 100 << 20, "e7.0": 32 << 20}
	for slot, size := range []uint64{want["e3.0"], want["e3.1"], want["e3.2"]} {
		vblades.Vblade(3, slot, int64(size))
	}
	target := l.Host("t").Target(7)
	target.MustLun("create", "e7.0", "--size", fmt.Sprint(want["e7.0"]), "--access", "open")
	target.MustLun("create", "e7.1", "--size", "16Mi")
	kernelDriver(t, l, guest)

	var we, kernel []seen
	var configs map[string]string
	l.Eventually(time.Minute, "all targets are seen by both", func() error {
		if we, configs = ours(t, initiator); len(we) < len(want) {
			return fmt.Errorf("discover: %+v", we)
		}
		l.Run("aoe-discover")
		if kernel = kernels(t, l); len(kernel) < len(want) {
			return fmt.Errorf("aoe-stat: %+v", kernel)
		}
		return nil
	})
	for _, s := range we {
		if s.bytes != want[s.target] {
			t.Errorf("%s has %d bytes, we see %d", s.target, want[s.target], s.bytes)
		}
	}
	if !slices.Equal(we, kernel) {
		t.Errorf("discover and aoe-stat differ:\n%+v\n%+v", we, kernel)
	}
	check := l.Run("aoe-sancheck", guest.If)
	t.Logf("discover: %+v\naoe-stat:\n%s\naoe-sancheck:\n%s", we, l.Run("aoe-stat"), check)
	if got := sancheck(check); !slices.EqualFunc(we, got, func(a, b seen) bool { return a.target == b.target && a.sectors == b.sectors }) {
		t.Errorf("discover and aoe-sancheck differ:\n%+v\n%+v", we, got)
	}

	client := l.Host("c")
	for i, s := range we {
		shelf, slot, _ := strings.Cut(strings.TrimPrefix(s.target, "e"), ".")
		// vblade does not fill its answers up to Ethernet's minimum, nor does a veth, and aoecfg does not see shorter ones.
		text := fmt.Sprintf("written by aoecfg to a target on this segment, %d", i)
		if out, err := client.Try(20*time.Second, "aoecfg", "-t", "2", "-c", "fset", "-s", text, shelf, slot, client.If); err != nil {
			t.Fatalf("aoecfg: %v\n%s", err, out)
		}
		out, err := client.Try(20*time.Second, "aoecfg", "-t", "2", shelf, slot, client.If)
		if _, configs = ours(t, initiator); err != nil || configs[s.target] != text || !strings.Contains(out, text) {
			t.Errorf("%s: written %q, we read %q, aoecfg %q, %v", s.target, text, configs[s.target], out, err)
		}
	}
}

// sancheck reads the devices of aoe-sancheck's report.
func sancheck(report string) (all []seen) {
	for line := range strings.Lines(report) {
		fields := strings.Fields(line) // e3.1 1 8704 aoe0
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "e") || fields[1] != "1" {
			continue
		}
		if payload, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
			all = append(all, seen{target: fields[0], sectors: payload / 512})
		}
	}
	return all
}

// kernelDriver loads it for the test.
func kernelDriver(t *testing.T, l *lab.Lab, guest *lab.Host) {
	t.Helper()
	l.Run("modprobe", "aoe", "aoe_iflist="+guest.If)
	t.Cleanup(func() {
		if out, err := l.TryFor(30*time.Second, "rmmod", "aoe"); err != nil {
			t.Errorf("rmmod aoe: %v %s", err, out)
		}
	})
}

// TestKernelHasIt: what the kernel's driver on this host has is not attached, until it lets go.
func TestKernelHasIt(t *testing.T) {
	l := lab.New(t)
	initiator, guest := l.Host("a").Initiator(), l.Guest()
	l.Host("v").Vblade(3, 1, 256<<20)
	kernelDriver(t, l, guest)
	l.Eventually(time.Minute, "the kernel's driver has e3.1", func() error {
		l.Run("aoe-discover")
		_, err := os.Stat("/sys/block/etherd!e3.1")
		return err
	})
	out, err := initiator.CLI(time.Minute, "attach", "e3.1")
	if err == nil || !strings.Contains(out, "aoe-flush e3.1") {
		t.Fatalf("attach of what the kernel's driver has: %v\n%s", err, out)
	}
	t.Logf("attach is refused: %s", strings.TrimSpace(out))
	l.Run("aoe-flush", "e3.1")
	l.Eventually(time.Minute, "the driver lets go", func() error {
		if _, err := os.Stat("/sys/block/etherd!e3.1"); err == nil {
			return fmt.Errorf("/sys/block/etherd!e3.1 is there")
		}
		return nil
	})
	mountAndVerify(t, l, initiator.Attach("e3.1"), "ext4", 5*time.Second)
	initiator.Detach("e3.1")
}
