package shelf_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/inband/inbandtest"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const poolShelf = 9

var (
	proxyMAC   = aoe.MAC{2, 0, 0, 0, 0, 1}
	targetsMAC = aoe.MAC{2, 0, 0, 0, 0, 7}
	nodeMAC    = aoe.MAC{2, 0, 0, 0, 1, 1}
	otherMAC   = aoe.MAC{2, 0, 0, 0, 1, 2}
)

// pool is a proxy over simulated vblades, and a controller that speaks to it.
type pool struct {
	t       *testing.T
	targets []*inbandtest.Target
	client  *inband.Client
	store   *provision.FileStore
	proxy   *shelf.Proxy
	address string
	service *provision.Service
	mu      sync.Mutex // guards events
	events  []string   // "Warning NotFenced"
}

// Event implements provision.Recorder.
func (p *pool) Event(_ *volume.Record, kind provision.EventType, reason, _ string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, string(kind)+" "+reason)
}

// vblades makes targets of so many sectors, slot 0 first.
func vblades(sectors ...uint64) []*inbandtest.Target {
	var all []*inbandtest.Target
	for slot, n := range sectors {
		addr := aoe.Addr{Shelf: poolShelf, Slot: uint8(slot)}
		all = append(all, &inbandtest.Target{Addr: addr, Sectors: n, Serial: fmt.Sprintf("%d:host", slot)})
	}
	return all
}

func newPool(t *testing.T, wipe bool, targets ...*inbandtest.Target) *pool {
	t.Helper()
	return newPoolWith(t, func(c *shelf.ProxyConfig) { c.Wipe = wipe }, targets...)
}

func newPoolWith(t *testing.T, set func(*shelf.ProxyConfig), targets ...*inbandtest.Target) *pool {
	t.Helper()
	net := linktest.NewNetwork(1, linktest.Profile{})
	t.Cleanup(net.Start())
	server, err := inbandtest.Serve(net.Link(targetsMAC), targets...)
	check(t, err)
	t.Cleanup(func() { check(t, server.Close()) })
	p := &pool{t: t, targets: targets}
	p.client, err = inband.NewClient(inband.Config{Interfaces: []string{"eth0"}, Open: func(string) (link.Link, link.Link, error) {
		a, c := net.Link(proxyMAC), net.Link(proxyMAC)
		c.SetFilter(func([]byte) bool { return false })
		return a, c, nil
	}})
	check(t, err)
	t.Cleanup(func() { check(t, p.client.Close()) })
	p.store, err = provision.OpenFileStore(t.TempDir())
	check(t, err)
	for node, mac := range map[string]aoe.MAC{"n1": nodeMAC, "n2": otherMAC} {
		check(t, p.store.PutNode(t.Context(), &volume.Node{
			Name: node, Interfaces: []volume.Interface{{Name: "eth0", MAC: mac.String(), Up: true}},
			Frontends: []volume.Frontend{{Name: "nbd", Available: true}},
		}))
	}
	var slots []uint8
	for _, target := range targets {
		slots = append(slots, target.Addr.Slot)
	}
	cfg := shelf.ProxyConfig{
		Shelf: poolShelf, Slots: slots, UUID: "pool", Info: shelf.Info{Segment: "default"}, Client: p.client, Intents: p.store,
		DuplicateLifetime: time.Millisecond,
	}
	set(&cfg)
	p.proxy = shelf.NewProxy(cfg)
	t.Cleanup(p.proxy.Close)
	p.serve()
	service, closeIt := p.controller(p.store)
	p.service = service
	t.Cleanup(closeIt)
	p.look()
	return p
}

// serve puts the API on a socket, whose path has to be short.
func (p *pool) serve() {
	dir, err := os.MkdirTemp("", "pool")
	check(p.t, err)
	p.t.Cleanup(func() { check(p.t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "s")
	l, err := shelf.ListenUnix(socket)
	check(p.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- shelf.Serve(ctx, l, p.proxy, nil) }()
	p.address = "unix://" + socket
	p.t.Cleanup(func() { cancel(); check(p.t, <-done) })
}

// controller is one more of them, until it is closed.
func (p *pool) controller(store volume.Store) (service *provision.Service, closeIt func()) {
	shelves := provision.NewShelves(provision.ShelvesConfig{Sources: []provision.Source{provision.StaticSource(p.address)}, Timeout: time.Minute})
	return provision.NewService(provision.Config{Store: store, Shelves: shelves, Recorder: p}), func() { check(p.t, shelves.Close()) }
}

// look has the proxy hear from every target, as a scan would.
func (p *pool) look() {
	p.t.Helper()
	var answers []inband.Answer
	for _, target := range p.targets {
		to := inband.Path{Addr: target.Addr, Interface: "eth0", MAC: targetsMAC}
		a, err := p.client.Config(p.t.Context(), to)
		check(p.t, err)
		a.Sectors, a.Serial, a.Model, a.LBA48, a.Reserve = target.Sectors, target.Serial, cmp.Or(target.Model, "vblade"), true, inband.Yes
		a.FlushClaimed = true
		a.Reserved = target.Reserved()
		if target.NoReserve {
			a.Reserve = inband.No
		}
		answers = append(answers, a)
	}
	p.proxy.Know(p.t.Context(), answers)
}

func (p *pool) request(name string, bytes int64) volume.CreateRequest {
	number := uint16(poolShelf)
	return volume.CreateRequest{Name: name, RequiredBytes: bytes, Claim: "team/" + name, Parameters: volume.Parameters{Shelf: &number, Frontend: "auto"}}
}

func (p *pool) create(name string, bytes int64) *volume.Volume {
	p.t.Helper()
	var v *volume.Volume
	p.finish(func() (err error) { v, err = p.service.Create(p.t.Context(), p.request(name, bytes)); return err })
	return v
}

// finish repeats a call while it says "not yet", as the side-cars do.
func (p *pool) finish(f func() error) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if !errors.Is(err, volume.ErrPending) || time.Now().After(deadline) {
			p.t.Fatal(err)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
