package driver

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
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
	for _, access := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address = "unix:" + socket
		config.TargetPath = filepath.Join(dir, access+"-target")
		config.StagingPath = filepath.Join(dir, access+"-staging")
		config.TestVolumeSize = 1 << 30
		config.TestVolumeAccessType = access
		config.IdempotentCount = 3
		defer sanity.GinkgoTest(&config).Finalize()
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-sanity")
}
