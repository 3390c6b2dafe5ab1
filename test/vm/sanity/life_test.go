//go:build vm

package sanity

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// life is a volume on its way through CSI.
type life struct {
	*stack
	t          *testing.T
	controller csi.ControllerClient
	nodeClient csi.NodeClient
	capability *csi.VolumeCapability
	volume     *csi.Volume
	published  map[string]string
	staging    string
}

func (s *stack) newLife(t *testing.T, name string, size int64, capability *csi.VolumeCapability, parameters map[string]string) *life {
	t.Helper()
	l := &life{stack: s, t: t, capability: capability, staging: filepath.Join(s.dir, name, "staging"),
		controller: csi.NewControllerClient(dial(t, s.controllerSocket)), nodeClient: csi.NewNodeClient(dial(t, s.nodeSocket))}
	if err := os.MkdirAll(l.staging, 0o750); err != nil {
		t.Fatal(err)
	}
	made, err := l.controller.CreateVolume(l.ctx(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{capability}, Parameters: parameters,
	})
	l.must(err)
	l.volume = made.GetVolume()
	return l
}

func (l *life) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.t.Cleanup(cancel)
	return ctx
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) target(name string) string { return filepath.Join(filepath.Dir(l.staging), name) }

func (l *life) attach() {
	l.t.Helper()
	response, err := l.controller.ControllerPublishVolume(l.ctx(), &csi.ControllerPublishVolumeRequest{
		VolumeId: l.volume.GetVolumeId(), NodeId: nodeName, VolumeCapability: l.capability, VolumeContext: l.volume.GetVolumeContext()})
	l.must(err)
	l.published = response.GetPublishContext()
}

func (l *life) stage() error {
	_, err := l.nodeClient.NodeStageVolume(l.ctx(), &csi.NodeStageVolumeRequest{
		VolumeId: l.volume.GetVolumeId(), StagingTargetPath: l.staging, VolumeCapability: l.capability,
		VolumeContext: l.volume.GetVolumeContext(), PublishContext: l.published})
	return err
}

func (l *life) publish(target string) error {
	_, err := l.nodeClient.NodePublishVolume(l.ctx(), &csi.NodePublishVolumeRequest{
		VolumeId: l.volume.GetVolumeId(), StagingTargetPath: l.staging, TargetPath: l.target(target), VolumeCapability: l.capability,
		VolumeContext: l.volume.GetVolumeContext(), PublishContext: l.published})
	return err
}

// up takes the volume all the way to a path.
func (l *life) up(target string) {
	l.t.Helper()
	l.attach()
	l.must(l.stage())
	l.must(l.publish(target))
}

// down takes the volume off the node.
func (l *life) down(target string) {
	l.t.Helper()
	_, err := l.nodeClient.NodeUnpublishVolume(l.ctx(), &csi.NodeUnpublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), TargetPath: l.target(target)})
	l.must(err)
	_, err = l.nodeClient.NodeUnstageVolume(l.ctx(), &csi.NodeUnstageVolumeRequest{VolumeId: l.volume.GetVolumeId(), StagingTargetPath: l.staging})
	l.must(err)
	_, err = l.controller.ControllerUnpublishVolume(l.ctx(), &csi.ControllerUnpublishVolumeRequest{VolumeId: l.volume.GetVolumeId(), NodeId: nodeName})
	l.must(err)
}

func (l *life) remove() {
	l.t.Helper()
	_, err := l.controller.DeleteVolume(l.ctx(), &csi.DeleteVolumeRequest{VolumeId: l.volume.GetVolumeId()})
	l.must(err)
}

func mounted(fsType string, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

func raw(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

const singleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

// What was written is there after the volume went away from the node and came back; a killed node plugin changes nothing.
func TestFileSystemsKeepTheirData(t *testing.T) {
	s := newStack(t)
	for _, test := range []struct {
		name, fsType string
		size         int64
		parameters   map[string]string
	}{
		{"default", "", 64 * mib, nil},
		{"options", "ext4", 64 * mib, map[string]string{"mkfsOptions": "-b 1024 -L data"}},
		{"xfs", "xfs", 320 * mib, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := s.newLife(t, test.name, test.size, mounted(test.fsType, singleWriter), test.parameters)
			l.up("pod")
			file := filepath.Join(l.target("pod"), "file")
			data := make([]byte, 4*mib)
			_, _ = rand.Read(data)
			l.must(os.WriteFile(file, data, 0o600))
			l.down("pod")
			if _, err := os.Stat(file); err == nil {
				t.Error("the file is there although nothing is mounted")
			}
			l.attach()
			l.must(l.stage())
			s.node.Kill()
			s.startNode()
			l.must(l.publish("pod"))
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read back %d bytes, %v; not what was written", len(got), err)
			}
			stats, err := l.nodeClient.NodeGetVolumeStats(l.ctx(), &csi.NodeGetVolumeStatsRequest{VolumeId: l.volume.GetVolumeId(), VolumePath: l.target("pod")})
			if err != nil || len(stats.GetUsage()) != 2 || stats.GetUsage()[0].GetUsed() < 4*mib {
				t.Errorf("statistics %v, %v", stats, err)
			}
			l.down("pod")
			l.remove()
		})
	}
	s.nothingLeft(t)
}

func TestRawBlock(t *testing.T) {
	s := newStack(t)
	l := s.newLife(t, "raw", 64*mib, raw(singleWriter), nil)
	data := bytes.Repeat([]byte("raw block "), 1000)
	for _, write := range []bool{true, false} {
		l.up("disk")
		device, err := os.OpenFile(l.target("disk"), os.O_RDWR, 0)
		l.must(err)
		if write {
			_, err = device.WriteAt(data, 12345)
			l.must(err)
			l.must(device.Sync())
		} else {
			got := make([]byte, len(data))
			if _, err := device.ReadAt(got, 12345); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read back: %v, or other data", err)
			}
		}
		l.must(device.Close())
		stats, err := l.nodeClient.NodeGetVolumeStats(l.ctx(), &csi.NodeGetVolumeStatsRequest{VolumeId: l.volume.GetVolumeId(), VolumePath: l.target("disk")})
		if err != nil || len(stats.GetUsage()) != 1 || stats.GetUsage()[0].GetTotal() != 64*mib {
			t.Errorf("statistics %v, %v", stats, err)
		}
		l.down("disk")
	}
	l.remove()
	s.nothingLeft(t)
}

// A volume with data that is no file system is not formatted, and the failure leaves no device behind.
func TestForeignDataIsNotFormatted(t *testing.T) {
	s := newStack(t)
	l := s.newLife(t, "foreign", 64*mib, raw(singleWriter), nil)
	l.up("disk")
	data := []byte("a database of somebody")
	l.must(os.WriteFile(l.target("disk"), data, 0))
	l.down("disk")
	l.capability = mounted("ext4", singleWriter)
	l.attach()
	if err := l.stage(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not blank") {
		t.Errorf("stage: %v, want a refusal", err)
	}
	if out, err := s.initiator.CLI(10*time.Second, "stat"); err != nil || strings.Contains(out, "/dev/") {
		t.Errorf("left attached: %v\n%s", err, out)
	}
	l.down("disk")
	l.capability = raw(singleWriter)
	l.up("disk")
	device, err := os.Open(l.target("disk"))
	l.must(err)
	got := make([]byte, len(data))
	if _, err := device.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("data is %q, %v", got, err)
	}
	l.must(device.Close())
	l.down("disk")
	l.remove()
	s.nothingLeft(t)
}

func TestReadWriteOncePod(t *testing.T) {
	s := newStack(t)
	l := s.newLife(t, "oncepod", 64*mib, mounted("", csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER), nil)
	l.up("first")
	l.must(l.publish("first"))
	if err := l.publish("second"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second pod: %v, want FailedPrecondition", err)
	}
	if _, err := os.Lstat(l.target("second")); err == nil {
		t.Error("the refused path was made")
	}
	l.down("first")
	l.remove()
	s.nothingLeft(t)
}
