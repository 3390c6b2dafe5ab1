package initiator

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func TestDiscover(t *testing.T) {
	s := newSegment(t)
	other := newModelTarget(t, s.net.Link(aoe.MAC{2, 0, 0, 0, 0, 9}), 3)
	other.serial, other.mac = "second", aoe.MAC{2, 0, 0, 0, 0, 9}
	var mu sync.Mutex
	serve(t, other, &mu)
	found, err := Discover(context.Background(), DiscoverConfig{Interfaces: []string{"eth0", "eth9"}, Wait: 200 * time.Millisecond, Open: s.open})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].Serial != "second" || found[1].Serial != testGeneration || found[1].Sectors != 2048 ||
		found[1].ConfigString != identityPrefix+testGeneration || found[1].BufferCount != 16 || found[1].Addr != testAddr {
		t.Errorf("found %+v", found)
	}
	nobody := aoe.Addr{Shelf: 9, Slot: 9}
	if found, err := Discover(context.Background(), DiscoverConfig{Interfaces: []string{"eth0"}, Wait: 50 * time.Millisecond, Addr: &nobody, Open: s.open}); err != nil || len(found) != 0 {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, err := Discover(context.Background(), DiscoverConfig{Interfaces: []string{"eth9"}, Open: s.open}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("without an interface: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Discover(ctx, DiscoverConfig{Interfaces: []string{"eth0"}, Open: s.open}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
