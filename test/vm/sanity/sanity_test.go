//go:build vm

// Package sanity runs csi-sanity, and a volume's life through CSI, against the real thing: controller, node plugin, initiator
// and target, each a process of its own, on two hosts with a cable between them.
package sanity

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const mib = 1 << 20

// TestSanity runs the suite twice, for file systems and for raw block volumes.
func TestSanity(t *testing.T) {
	s := newStack(t)
	for _, access := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address = "unix:" + s.nodeSocket
		config.ControllerAddress = "unix:" + s.controllerSocket
		config.TargetPath = filepath.Join(s.dir, access+"-target")
		config.StagingPath = filepath.Join(s.dir, access+"-staging")
		config.TestVolumeSize = 64 * mib
		config.TestVolumeAccessType = access
		config.TestVolumeParameters = map[string]string{"frontend": lab.Frontend()}
		config.IdempotentCount = 5
		context := sanity.GinkgoTest(&config)
		t.Cleanup(context.Finalize)
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "CSI Driver Test Suite")
	s.nothingLeft(t)
}

// unadvertised are the reasons for which the suite itself leaves specs out: services that the driver does not claim to have, and
// the one spec that needs more devices than the guest has (256 volumes on a node).
var unadvertised = []string{
	"Snapshot not supported", "ListSnapshots not supported", "GetSnapshot not supported", "DeleteSnapshot not supported",
	"CreateSnapshot not supported", "GroupControllerService not supported", "VolumeGroupSnapshots not supported",
	"Volume Cloning not supported", "Modify volume not supported", "Modify Volume not supported", "ControllerModifyVolume not supported",
	"ControllerGetVolumeHealth not supported", "ControllerListVolumeHealth not supported",
	"NodeGetVolumeHealth not supported", "NodeGetStorageHealth not supported",
	"testnodevolumeattachlimit not enabled",
}

// Every spec that was left out must be so for a reason above.
var _ = ginkgo.ReportAfterSuite("what was left out", func(report types.Report) {
	passed := 0
	for _, spec := range report.SpecReports {
		switch spec.State {
		case types.SpecStatePassed:
			passed++
		case types.SpecStateSkipped:
			if reason := spec.Failure.Message; !slices.Contains(unadvertised, reason) {
				ginkgo.Fail("left out: " + spec.FullText() + ": " + reason)
			}
		}
	}
	if passed < 100 {
		ginkgo.Fail("fewer specs ran than the driver's capabilities ask for")
	}
})
