package driver

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
)

// TestSanity runs csi-sanity against the services over fakes in memory: the checks of requests, codes and idempotency. The same
// suite runs against real disks in test/vm/sanity.
func TestSanity(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "csi.sock")
	server := NewServer(Config{
		Version:    "test",
		Controller: NewController(newMemoryVolumes()),
		Node:       NewNode(NodeConfig{ID: testNode, Segment: testSegment, Attacher: &memoryAttacher{}, Mounter: &memoryMounter{}}),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe(ctx, "unix://"+socket) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	config := sanity.NewTestConfig()
	config.Address = "unix:" + socket
	config.TargetPath = filepath.Join(dir, "target")
	config.StagingPath = filepath.Join(dir, "staging")
	config.TestVolumeSize = 1 << 30
	config.IdempotentCount = 3
	sanity.Test(t, config)
}
