package inband_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/inband/inbandtest"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

var (
	ourMAC = aoe.MAC{2, 0, 0, 0, 0, 1}
	others = []aoe.MAC{{2, 0, 0, 0, 0, 7}, {2, 0, 0, 0, 0, 8}}
)

// segment is a network with simulated targets, each slice behind a MAC of its own.
type segment struct {
	t   *testing.T
	net *linktest.Network
}

func newSegment(t *testing.T, profile linktest.Profile, behind ...[]*inbandtest.Target) *segment {
	t.Helper()
	s := &segment{t: t, net: linktest.NewNetwork(1, profile)}
	t.Cleanup(s.net.Start())
	for i, targets := range behind {
		server, err := inbandtest.Serve(s.net.Link(others[i]), targets...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

func (s *segment) config() inband.Config {
	return inband.Config{Interfaces: []string{"eth0", "eth9"}, Open: func(name string) (link.Link, link.Link, error) {
		if name != "eth0" {
			return nil, nil, link.ErrDown
		}
		a, c := s.net.Link(ourMAC), s.net.Link(ourMAC)
		a.SetFilter(func(b []byte) bool {
			f := aoe.Frame(b)
			return f.IsResponse() && f.Tag()&aoe.TagOwn != 0 && aoe.TagShard(f.Tag()) == inband.Shard
		})
		c.SetFilter(func(b []byte) bool { return aoe.Frame(b).IsResponse() && aoe.Frame(b).Command() == aoe.CommandConfig })
		return a, c, nil
	}}
}

func (s *segment) client() *inband.Client {
	s.t.Helper()
	c, err := inband.NewClient(s.config())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return c
}

func disk(shelf uint16, slot uint8) *inbandtest.Target {
	return &inbandtest.Target{Addr: aoe.Addr{Shelf: shelf, Slot: slot}, Sectors: 2048, Serial: fmt.Sprintf("%d.%d:host", shelf, slot)}
}

func TestDiscover(t *testing.T) {
	plain, old := disk(7, 3), disk(7, 1)
	old.NoReserve, old.NoMask, old.Model = true, true, "kvblade"
	plain.SetConfig("somebody's")
	plain.SetReserved(others[1])
	s := newSegment(t, linktest.Profile{}, []*inbandtest.Target{plain, old})
	found, err := inband.Discover(t.Context(), s.config(), inband.ScanConfig{Wait: 20 * time.Second, Abilities: true, Jitter: time.Millisecond})
	if err != nil || len(found) != 2 {
		t.Fatalf("found %+v, %v", found, err)
	}
	if a := found[0]; a.Addr != old.Addr || a.Reserve != inband.No || a.Mask != inband.No || a.Sectors != 2048 || inband.QuirksOf(a).Name != "kvblade" {
		t.Errorf("first %+v", a)
	}
	if a := found[1]; a.Addr != plain.Addr || a.Reserve != inband.Yes || !slices.Equal(a.Reserved, others[1:]) || a.Mask != inband.Yes ||
		a.ConfigString != "somebody's" || a.BufferCount != 16 || a.MAC != others[0] || a.Serial != "7.3:host" || !inband.QuirksOf(a).Forgets {
		t.Errorf("second %+v", a)
	}
	nobody := aoe.Addr{Shelf: 9, Slot: 9}
	if found, err := inband.Discover(t.Context(), s.config(), inband.ScanConfig{Wait: 50 * time.Millisecond, Addr: &nobody}); err != nil || len(found) != 0 {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, err := inband.Discover(t.Context(), inband.Config{Interfaces: []string{"eth9"}, Open: s.config().Open}, inband.ScanConfig{}); !errors.Is(err, inband.ErrNoInterface) {
		t.Errorf("without an interface: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := inband.Discover(ctx, s.config(), inband.ScanConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTwoTargetsAtOneAddressAreAConflict(t *testing.T) {
	twin := disk(7, 3)
	twin.Serial = "7.3:elsewhere"
	s := newSegment(t, linktest.Profile{}, []*inbandtest.Target{disk(7, 3), disk(7, 4)}, []*inbandtest.Target{twin})
	found, err := inband.Discover(t.Context(), s.config(), inband.ScanConfig{Wait: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	all := inband.Targets(found)
	if len(all) != 2 || !strings.Contains(all[0].Conflict, "serial number differs") || all[1].Conflict != "" {
		t.Errorf("targets %+v", all)
	}
	// A second vblade on the same file is a second vblade all the same: its reservation is its own.
	for i := range found {
		found[i].Serial, found[i].Addr = "same", aoe.Addr{Shelf: 7, Slot: 3}
	}
	if all := inband.Targets(found); len(all) != 1 || !strings.Contains(all[0].Conflict, "one port") {
		t.Errorf("targets %+v", all)
	}
	// Ports of a big shelf are no conflict.
	for i := range found {
		found[i].Model = "EtherDrive SRX"
	}
	if all := inband.Targets(found); len(all) != 1 || all[0].Conflict != "" || len(all[0].Answers) != 3 {
		t.Errorf("targets %+v", all)
	}
}

func TestCommandsThroughLoss(t *testing.T) {
	d := disk(7, 3)
	s := newSegment(t, linktest.Profile{Loss: 0.1}, []*inbandtest.Target{d})
	c, ctx := s.client(), t.Context()
	to := inband.Path{Addr: d.Addr, Interface: "eth0", MAC: others[0]}
	if _, err := c.SetConfig(ctx, to, "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetConfig(ctx, to, "mine"); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if a, err := c.SetConfig(ctx, to, "yours"); !errors.Is(err, inband.ErrConfigSet) || a.ConfigString != "mine" {
		t.Errorf("another: %v, %v", a, err)
	}
	if err := c.Write(ctx, to, 5, append(make([]byte, 511), 9)); err != nil {
		t.Error(err)
	}
	if b, err := c.Read(ctx, to, 4, 2); err != nil || len(b) != 1024 || b[1023] != 9 || b[511] != 0 {
		t.Errorf("read %v", err)
	}
	if err := c.Flush(ctx, to); err != nil {
		t.Errorf("flush: %v", err)
	}
	if _, err := c.Read(ctx, to, 2047, 2); !errors.Is(err, inband.ErrFailed) {
		t.Errorf("past the end: %v", err)
	}
	if err := c.ForceReserve(ctx, to, others[1:]); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(ctx, to, 0, 1); err == nil {
		t.Error("reserved for others, and read")
	}
	if err := c.Reserve(ctx, to, []aoe.MAC{ourMAC}); !errors.Is(err, inband.ErrReserved) {
		t.Errorf("reserve: %v", err)
	}
	if err := c.ForceConfig(ctx, to, ""); err != nil || d.Config() != "" {
		t.Errorf("clear: %v, %q", err, d.Config())
	}
	d.SetDown(true)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := c.Identify(short, to); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody there: %v", err)
	}
}
