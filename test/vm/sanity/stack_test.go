//go:build vm

package sanity

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const nodeName = "node-a"

// stack is a whole installation without Kubernetes: a shelf on one host; initiator, node plugin and controller on the guest, in its
// own mount namespace, where the test sees what is mounted.
type stack struct {
	lab              *lab.Lab
	host             *lab.Host
	target           *lab.Target
	initiator        *lab.Initiator
	dir              string
	store            string
	controllerSocket string
	nodeSocket       string
	node             *lab.Process
}

func newStack(t *testing.T) *stack {
	t.Helper()
	l := lab.New(t)
	s := &stack{lab: l, dir: l.Dir(), store: filepath.Join(l.Dir(), "store")}
	s.target = l.Host("shelf").Target(7)
	s.host = l.Guest()
	s.initiator = s.host.Initiator()
	s.controllerSocket = filepath.Join(s.dir, "controller.sock")
	s.nodeSocket = filepath.Join(s.dir, "node.sock")
	s.host.Start(lab.Binary(), "controller", "--endpoint", "unix://"+s.controllerSocket, "--store", s.store,
		"--shelf", "unix://"+s.target.API(), "--v", "2")
	s.startNode()
	l.Eventually(20*time.Second, "the node's report", func() error {
		_, err := os.Stat(filepath.Join(s.store, "nodes", nodeName+".json"))
		return err
	})
	s.ready(t, s.controllerSocket)
	s.ready(t, s.nodeSocket)
	return s
}

// startNode starts the node plugin, also again after it was killed.
func (s *stack) startNode() {
	s.node = s.host.Start(lab.Binary(), "node", "--endpoint", "unix://"+s.nodeSocket, "--node-id", nodeName,
		"--initiator", s.initiator.Socket(), "--store", s.store, "--v", "2")
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ready waits until the process behind a socket says that it is.
func (s *stack) ready(t *testing.T, socket string) {
	t.Helper()
	client := csi.NewIdentityClient(dial(t, socket))
	s.lab.Eventually(20*time.Second, socket+" being ready", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		response, err := client.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && !response.GetReady().GetValue() {
			err = fmt.Errorf("not ready")
		}
		return err
	})
}

// nothingLeft fails the test if a volume, device or mount outlived it.
func (s *stack) nothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"volumes", "slots"} {
		entries, err := os.ReadDir(filepath.Join(s.store, dir))
		if err != nil || len(entries) > 0 {
			t.Errorf("left in the store: %v, %v", entries, err)
		}
	}
	if out := s.target.MustLun("list"); strings.Contains(out, "e7.") {
		t.Errorf("left on the shelf:\n%s", out)
	}
	if out, err := s.initiator.CLI(10*time.Second, "stat"); err != nil || strings.Contains(out, "/dev/") {
		t.Errorf("left attached: %v\n%s", err, out)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), "/dev/nbd") || strings.Contains(string(mounts), "/dev/ublkb") || strings.Contains(string(mounts), s.dir) {
		t.Errorf("left mounted: %v\n%s", err, mounts)
	}
}
