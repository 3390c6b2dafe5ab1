//go:build integration

package shelf_test

import (
	"bytes"
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
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const insideEnv = "AOE_CSI_TEST_NETNS"

// TestMain runs the tests once more in a network namespace of their own, which has no name and goes with the process.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "loopback: %v\n", err)
			os.Exit(1)
		}
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

// bridge connects hosts, each of which has an interface of its name. All of it goes with the test.
func bridge(t *testing.T, hosts ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "switch"
	br := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(br))
	t.Cleanup(func() { check(t, netlink.LinkDel(br)) })
	must(t, netlink.LinkSetUp(br))
	for _, host := range hosts {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = host
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: host + "-port"}
		must(t, netlink.LinkAdd(veth))
		t.Cleanup(func() { check(t, netlink.LinkDel(veth)) })
		port, err := netlink.LinkByName(host + "-port")
		must(t, err)
		must(t, netlink.LinkSetMaster(port, br))
		must(t, netlink.LinkSetUp(port))
		end, err := netlink.LinkByName(host)
		must(t, err)
		must(t, netlink.LinkSetUp(end))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// vblade is a real one.
type vblade struct {
	t    *testing.T
	slot int
	file string
	cmd  *exec.Cmd
}

func startVblade(t *testing.T, slot int, content []byte) *vblade {
	t.Helper()
	v := &vblade{t: t, slot: slot, file: filepath.Join(t.TempDir(), "disk")}
	must(t, os.WriteFile(v.file, content, 0o600))
	v.start()
	t.Cleanup(v.stop)
	return v
}

func (v *vblade) start() {
	v.t.Helper()
	v.cmd = exec.Command("vblade", fmt.Sprint(poolShelf), fmt.Sprint(v.slot), "storage", v.file)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("vblade (package vblade needed): %v", err)
	}
}

func (v *vblade) stop() {
	if err := v.cmd.Process.Kill(); err != nil {
		v.t.Error(err)
	}
	_ = v.cmd.Wait() // killed, as it says
}

func (v *vblade) restart() { v.stop(); v.start() }

// node attaches as an initiator on a host does; macs are where the target is, if that is known.
func node(t *testing.T, index uint8, host string, v *volume.Volume, macs ...aoe.MAC) *initiator.Device {
	t.Helper()
	s, err := initiator.NewShard(initiator.ShardConfig{Index: index, Interfaces: []string{host}})
	must(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := s.Attach(ctx, initiator.DeviceConfig{Addr: v.ID.Addr, Generation: string(v.ID.Generation), MACs: macs})
	must(t, err)
	return d
}

type signal chan struct{}

func (s signal) Complete(*initiator.Request) { close(s) }

func io(t *testing.T, d *initiator.Device, op initiator.Op, data []byte) error {
	t.Helper()
	done := make(signal)
	r := &initiator.Request{Op: op, LBA: 100, Sectors: uint32(len(data) / aoe.SectorSize), Data: data, Done: done}
	must(t, d.Shard().Do(t.Context(), func() { d.Submit(r) }))
	select {
	case <-done:
		return r.Err
	case <-time.After(3 * time.Minute):
		t.Fatalf("%s never completed; state %+v", op, d.State())
		return nil
	}
}

// realPool is a proxy on the bridge, a controller that speaks to it, and the nodes n1 and n2.
func realPool(t *testing.T, slots ...uint8) *pool {
	t.Helper()
	client, err := inband.NewClient(inband.Config{Interfaces: []string{"proxy"}})
	must(t, err)
	t.Cleanup(func() { check(t, client.Close()) })
	store, err := provision.OpenFileStore(t.TempDir())
	must(t, err)
	for _, host := range []string{"n1", "n2"} {
		l, err := netlink.LinkByName(host)
		must(t, err)
		must(t, store.PutNode(t.Context(), &volume.Node{
			Name: host, Interfaces: []volume.Interface{{Name: host, MAC: l.Attrs().HardwareAddr.String(), Up: true}},
			Frontends: []volume.Frontend{{Name: "nbd", Available: true}},
		}))
	}
	p := &pool{t: t, client: client, store: store}
	p.proxy = shelf.NewProxy(shelf.ProxyConfig{
		Shelf: poolShelf, Slots: slots, UUID: "pool", Info: shelf.Info{Segment: "default"}, Client: client, Intents: store,
	})
	t.Cleanup(p.proxy.Close)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { p.proxy.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	p.serve()
	service, closeIt := p.controller(store)
	p.service = service
	t.Cleanup(closeIt)
	return p
}

// TestPoolOfRealVblades: one with data on it, one too small, a blank one; restarts at every stage; fencing; scrubbing.
func TestPoolOfRealVblades(t *testing.T) {
	bridge(t, "proxy", "storage", "n1", "n2")
	full := bytes.Repeat([]byte("precious"), 4*mib/8)
	kept := startVblade(t, 0, full)
	startVblade(t, 1, make([]byte, mib))
	disk := startVblade(t, 2, make([]byte, 4*mib))

	p := realPool(t, 0, 1, 2)
	client, store, service := p.client, p.store, p.service

	var v *volume.Volume
	eventually(t, "a volume on the blank one", func() bool {
		var err error
		v, err = service.Create(t.Context(), p.request("data", 2*mib))
		return err == nil
	})
	if v.ID.Addr.Slot != 2 || v.SizeBytes != 4*mib {
		t.Fatalf("took %+v", v)
	}
	_, err := service.Create(t.Context(), p.request("more", 2*mib))
	if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "e9.0 is not blank") || !strings.Contains(err.Error(), "e9.1 has 1 MiB only") {
		t.Fatalf("second claim: %v", err)
	}

	disk.restart() // between making and publishing
	handle := v.ID.String()
	must(t, publish(t, service, handle, "n1"))
	first := node(t, 1, "n1", v)
	data := bytes.Repeat([]byte{0xa5}, 64*aoe.SectorSize)
	must(t, io(t, first, initiator.OpWrite, data))
	disk.restart() // in use: I/O waits until the claim is back
	began := time.Now()
	must(t, io(t, first, initiator.OpWrite, data))
	t.Logf("a write after vblade's restart took %v", time.Since(began))
	n1, err := store.GetNode(t.Context(), "n1")
	must(t, err)
	storage, err := netlink.LinkByName("storage")
	must(t, err)
	way := inband.Path{Addr: v.ID.Addr, Interface: "proxy", MAC: aoe.MAC(storage.Attrs().HardwareAddr)}
	eventually(t, "claim and reservation are restored", func() bool {
		a, err := client.Config(t.Context(), way)
		must(t, err)
		list, err := client.Reservation(t.Context(), way)
		must(t, err)
		c, err := aoe.ParseClaim(a.ConfigString)
		return err == nil && c.Generation == string(v.ID.Generation) && len(list) == 1 && list[0].String() == n1.MACs()[0]
	})
	t.Logf("claim and reservation were back after %v", time.Since(began))

	eventually(t, "n1 is taken off", func() bool { return service.Unpublish(t.Context(), handle, "n1") == nil })
	if err := io(t, first, initiator.OpWrite, make([]byte, 64*aoe.SectorSize)); !errors.Is(err, initiator.ErrReserved) {
		t.Errorf("the old node writes: %v", err)
	}
	must(t, publish(t, service, handle, "n2"))
	second := node(t, 2, "n2", v)
	got := make([]byte, len(data))
	if err := io(t, second, initiator.OpRead, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the next node reads other data: %v", err)
	}
	must(t, second.Detach(t.Context(), true))
	must(t, first.Detach(t.Context(), true))

	eventually(t, "n2 is taken off", func() bool { return service.Unpublish(t.Context(), handle, "n2") == nil })
	disk.restart() // before deletion
	eventually(t, "deletion", func() bool { return service.Delete(t.Context(), handle) == nil })
	if b, err := os.ReadFile(disk.file); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("data are left after the deletion: %v", err)
	}
	if b, err := os.ReadFile(kept.file); err != nil || !bytes.Equal(b, full) {
		t.Errorf("the LUN that was refused has changed: %v", err)
	}
}

func publish(t *testing.T, service *provision.Service, handle, node string) (err error) {
	t.Helper()
	eventually(t, "published", func() bool {
		_, err = service.Publish(t.Context(), handle, node, false)
		return err == nil
	})
	return err
}
