//go:build vm

package faults

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestLostAnswer: a shelf creates the LUN, its answer is lost and the shelf cannot be reached for a while. The repeated
// CreateVolume makes nothing on the other shelf, and one LUN is all there is in the end.
func TestLostAnswer(t *testing.T) {
	l := lab.New(t)
	seven, eight := l.Host("t7").Target(7), l.Host("t8").Target(8)
	eight.MustLun("create", "e8.0", "--size", "256Mi") // so that shelf 7 is the one with more room
	proxy := newProxy(t, filepath.Join(l.Dir(), "proxy.sock"), seven.API())
	client := startController(t, l, "unix://"+proxy.path, "unix://"+eight.API())
	request := &csi.CreateVolumeRequest{
		Name:          "pvc-lost",
		CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	}
	create := func(patience time.Duration) (*csi.CreateVolumeResponse, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return client.CreateVolume(ctx, request)
	}

	proxy.mode.Store(slow)
	first := make(chan error, 1)
	go func() {
		_, err := create(20 * time.Second)
		first <- err
	}()
	l.Eventually(20*time.Second, "LUN on shelf 7", func() error {
		if out := seven.MustLun("list"); !strings.Contains(out, "pvc-lost") {
			return fmt.Errorf("not there:\n%s", out)
		}
		proxy.mode.Store(deaf) // its answer is still on the way, and stays there
		return nil
	})
	if err := <-first; err == nil {
		t.Fatal("CreateVolume succeeded though its answer was lost: the proxy lost nothing")
	} else {
		t.Logf("first call: %v", err)
	}
	for i := range 2 {
		_, err := create(15 * time.Second)
		if c := status.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded && c != codes.Aborted {
			t.Fatalf("repeat %d while the shelf is unreachable: %v, want UNAVAILABLE", i, err)
		}
		t.Logf("repeat %d: %v", i, err)
	}
	if out := eight.MustLun("list"); strings.Contains(out, "pvc-lost") {
		t.Fatalf("a second LUN was made on shelf 8:\n%s", out)
	}

	proxy.mode.Store(pass)
	proxy.hangUp()
	var made *csi.CreateVolumeResponse
	l.Eventually(time.Minute, "CreateVolume after the shelf is back", func() (err error) {
		made, err = create(15 * time.Second)
		return err
	})
	if id := made.GetVolume().GetVolumeId(); !strings.HasPrefix(id, "e7.") {
		t.Errorf("volume is %s, not on shelf 7", id)
	}
	if n := strings.Count(seven.MustLun("list")+eight.MustLun("list"), "pvc-lost"); n != 1 {
		t.Errorf("%d LUNs of pvc-lost, want 1", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := client.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.GetVolume().GetVolumeId()}); err != nil {
		t.Fatal(err)
	}
	if out := seven.MustLun("list"); strings.Contains(out, "pvc-lost") {
		t.Errorf("the deleted LUN is still there:\n%s", out)
	}
}

// startController runs `aoe-csi controller` with a directory as its store and returns a client of its CSI socket.
func startController(t *testing.T, l *lab.Lab, shelves ...string) csi.ControllerClient {
	t.Helper()
	socket := filepath.Join(l.Dir(), "csi.sock")
	args := []string{lab.Binary(), "controller", "--endpoint", "unix://" + socket, "--store", filepath.Join(l.Dir(), "store")}
	for _, s := range shelves {
		args = append(args, "--shelf", s)
	}
	l.Host("ctl").Start(args...)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := csi.NewControllerClient(conn)
	l.Eventually(30*time.Second, "controller", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
		return err
	})
	return client
}

// Modes of a proxy.
const (
	pass int32 = iota
	slow       // answers arrive after a second
	deaf       // answers do not arrive
)

// proxy stands between the controller and a shelf's API.
type proxy struct {
	path  string
	mode  atomic.Int32
	conns chan net.Conn
}

func newProxy(t *testing.T, path, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	p := &proxy{path: path, conns: make(chan net.Conn, 64)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("unix", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.conns <- c
			go func() { _, _ = io.Copy(s, c); _ = s.Close() }()
			go p.answers(c, s)
		}
	}()
	return p
}

// answers carries what the shelf says to the controller, or does not.
func (p *proxy) answers(c, s net.Conn) {
	defer c.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if p.mode.Load() == slow {
			time.Sleep(time.Second)
		}
		if p.mode.Load() == deaf {
			continue
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// hangUp ends the connections that have missed answers.
func (p *proxy) hangUp() {
	for {
		select {
		case c := <-p.conns:
			_ = c.Close()
		default:
			return
		}
	}
}
