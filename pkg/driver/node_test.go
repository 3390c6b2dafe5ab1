package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const testVolume = "e7.3-abcdefghijklm234"

// nodeBench is a node service with fakes around it.
type nodeBench struct {
	client   csi.NodeClient
	attacher *memoryAttacher
	mounter  *memoryMounter
	recorder *memoryRecorder
	dir      string
}

func newNodeBench(t *testing.T) *nodeBench {
	b := &nodeBench{attacher: &memoryAttacher{}, mounter: &memoryMounter{}, recorder: &memoryRecorder{}, dir: t.TempDir()}
	b.client = csi.NewNodeClient(serveTest(t, Config{Node: NewNode(NodeConfig{
		ID: testNode, Segment: testSegment, Attacher: b.attacher, Mounter: b.mounter, Recorder: b.recorder,
	})}))
	return b
}

func (b *nodeBench) staging() string { return filepath.Join(b.dir, "staging") }

func publishContext() map[string]string {
	return map[string]string{"target": "e7.3", "generation": "abcdefghijklm234", "frontend": "auto", "deadTime": "0s"}
}

func (b *nodeBench) stageRequest() *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{
		VolumeId: testVolume, StagingTargetPath: b.staging(), VolumeCapability: mountCapability(""), PublishContext: publishContext(),
	}
}

func (b *nodeBench) publishRequest(target string) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: testVolume, StagingTargetPath: b.staging(), TargetPath: filepath.Join(b.dir, target),
		VolumeCapability: mountCapability(""), PublishContext: publishContext(),
	}
}

func TestNodeStageBadRequests(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*csi.NodeStageVolumeRequest)
		text   string
	}{
		{"no volume", func(r *csi.NodeStageVolumeRequest) { r.VolumeId = "" }, "volume ID missing"},
		{"no path", func(r *csi.NodeStageVolumeRequest) { r.StagingTargetPath = "" }, "staging path missing"},
		{"relative path", func(r *csi.NodeStageVolumeRequest) { r.StagingTargetPath = "staging" }, "not absolute"},
		{"no capability", func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = nil }, "capability missing"},
		{"shared", func(r *csi.NodeStageVolumeRequest) {
			r.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, "MULTI_NODE"},
		{"file system", func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = mountCapability("vfat") }, "vfat"},
		{"file system in the context", func(r *csi.NodeStageVolumeRequest) { r.VolumeContext = map[string]string{"fsType": "../x"} }, "../x"},
		{"no context", func(r *csi.NodeStageVolumeRequest) { r.PublishContext = nil }, `lacks "target"`},
		{"no generation", func(r *csi.NodeStageVolumeRequest) { delete(r.PublishContext, "generation") }, `lacks "generation"`},
		{"wrong target", func(r *csi.NodeStageVolumeRequest) { r.PublishContext["target"] = "e7" }, `"e7"`},
		{"wrong generation", func(r *csi.NodeStageVolumeRequest) { r.PublishContext["generation"] = "short" }, `"short"`},
		{"wrong front end", func(r *csi.NodeStageVolumeRequest) { r.PublishContext["frontend"] = "scsi" }, `"scsi"`},
		{"wrong dead time", func(r *csi.NodeStageVolumeRequest) { r.PublishContext["deadTime"] = "-1s" }, `"-1s"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNodeBench(t)
			request := b.stageRequest()
			test.change(request)
			_, err := b.client.NodeStageVolume(t.Context(), request)
			expect(t, err, codes.InvalidArgument, test.text)
			if len(b.attacher.attached) > 0 {
				t.Error("something is attached")
			}
		})
	}
}

func TestNodeStage(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*csi.NodeStageVolumeRequest)
		want   []string // device, type, options of the mount; nil: none
	}{
		{"default", func(*csi.NodeStageVolumeRequest) {}, []string{"/dev/nbd0", "ext4"}},
		{"from the capability", func(r *csi.NodeStageVolumeRequest) {
			r.VolumeCapability = mountCapability("xfs")
			r.VolumeContext = map[string]string{"fsType": "ext4"}
		}, []string{"/dev/nbd0", "xfs"}},
		{"from the context, with options", func(r *csi.NodeStageVolumeRequest) {
			r.VolumeContext = map[string]string{"fsType": "xfs", "mkfsOptions": "-L data"}
			r.VolumeCapability.GetMount().MountFlags = []string{"noatime"}
		}, []string{"/dev/nbd0", "xfs", "-L", "data", "noatime"}},
		{"read-only", func(r *csi.NodeStageVolumeRequest) { r.PublishContext["readOnly"] = "true" }, []string{"/dev/nbd0", "ext4", "ro"}},
		{"raw block", func(r *csi.NodeStageVolumeRequest) {
			r.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNodeBench(t)
			request := b.stageRequest()
			test.change(request)
			for range 2 { // the second finds all done
				_, err := b.client.NodeStageVolume(t.Context(), request)
				expect(t, err, codes.OK)
			}
			var want [][]string
			if test.want != nil {
				want = [][]string{test.want}
			}
			if !slices.EqualFunc(b.mounter.formats, want, slices.Equal[[]string]) {
				t.Errorf("mounted %q, want %q", b.mounter.formats, want)
			}
			if len(b.attacher.attached) != 1 {
				t.Errorf("%d attached", len(b.attacher.attached))
			}
			for range 2 {
				_, err := b.client.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: testVolume, StagingTargetPath: b.staging()})
				expect(t, err, codes.OK)
			}
			if len(b.attacher.attached) != 0 || len(b.mounter.mounts) != 0 {
				t.Errorf("left: %v, %v", b.attacher.attached, b.mounter.mounts)
			}
		})
	}
}

func TestNodeStageReplacesStaleMount(t *testing.T) {
	b := newNodeBench(t)
	b.mounter.set(b.staging(), 12345)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	if len(b.mounter.formats) != 1 || b.mounter.mounts[b.staging()] == 12345 {
		t.Errorf("mounts %v after %q", b.mounter.mounts, b.mounter.formats)
	}
}

func TestNodeStageFailures(t *testing.T) {
	for _, test := range []struct {
		name     string
		breaks   func(*nodeBench)
		want     codes.Code
		detached bool
	}{
		{"nobody answers", func(b *nodeBench) { b.attacher.fail = status.Error(codes.NotFound, "nobody at e7.3") }, codes.Unavailable, false},
		{"wrong volume there", func(b *nodeBench) { b.attacher.fail = status.Error(codes.FailedPrecondition, "another volume") }, codes.FailedPrecondition, false},
		{"no device", func(b *nodeBench) { b.attacher.fail = status.Error(codes.ResourceExhausted, "all taken") }, codes.ResourceExhausted, false},
		{"holds data", func(b *nodeBench) { b.mounter.fail = refusal{errors.New("holds data")} }, codes.FailedPrecondition, true},
		{"mount fails", func(b *nodeBench) { b.mounter.fail = errors.New("mount: I/O error") }, codes.Internal, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNodeBench(t)
			test.breaks(b)
			_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
			expect(t, err, test.want, testVolume)
			if got := len(b.attacher.detached) == 1; got != test.detached {
				t.Errorf("detached %q, want that: %v", b.attacher.detached, test.detached)
			}
			if len(b.attacher.attached) != 0 {
				t.Errorf("left attached: %v", b.attacher.attached)
			}
		})
	}
}

// A failed stage must not take the device from under a pod that has it.
func TestNodeStageFailureKeepsDeviceInUse(t *testing.T) {
	b := newNodeBench(t)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	b.mounter.set("/pod", 43<<8)
	delete(b.mounter.mounts, b.staging())
	b.mounter.fail = errors.New("mount: no")
	_, err = b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.Internal)
	if len(b.attacher.detached) != 0 {
		t.Error("the device was detached under a mount")
	}
}

func TestNodeUnstageRefusesDeviceInUse(t *testing.T) {
	b := newNodeBench(t)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	b.mounter.set("/pod", 43<<8)
	unstage := &csi.NodeUnstageVolumeRequest{VolumeId: testVolume, StagingTargetPath: b.staging()}
	_, err = b.client.NodeUnstageVolume(t.Context(), unstage)
	expect(t, err, codes.FailedPrecondition, "/pod")
	delete(b.mounter.mounts, "/pod")
	_, err = b.client.NodeUnstageVolume(t.Context(), unstage)
	expect(t, err, codes.OK)
}

func TestNodePublishBadRequests(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*csi.NodePublishVolumeRequest)
		want   codes.Code
		text   string
	}{
		{"no volume", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument, "volume ID missing"},
		{"no target", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument, "target path missing"},
		{"relative target", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "x" }, codes.InvalidArgument, "not absolute"},
		{"no staging", func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "" }, codes.InvalidArgument, "staging path missing"},
		{"no capability", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument, "capability missing"},
		{"not attached", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "e7.4-abcdefghijklm234" }, codes.FailedPrecondition, "stage it first"},
		{"staged elsewhere", func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "/elsewhere" }, codes.FailedPrecondition, "stage it first"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNodeBench(t)
			_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
			expect(t, err, codes.OK)
			request := b.publishRequest("target")
			test.change(request)
			_, err = b.client.NodePublishVolume(t.Context(), request)
			expect(t, err, test.want, test.text)
			if len(b.mounter.mounts) != 1 {
				t.Errorf("mounts: %v", b.mounter.mounts)
			}
		})
	}
}

func TestNodePublish(t *testing.T) {
	for _, block := range []bool{false, true} {
		b := newNodeBench(t)
		stage, publish := b.stageRequest(), b.publishRequest("target")
		publish.Readonly = !block
		if block {
			stage.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
			publish.VolumeCapability = stage.VolumeCapability
		}
		_, err := b.client.NodeStageVolume(t.Context(), stage)
		expect(t, err, codes.OK)
		for range 2 {
			_, err := b.client.NodePublishVolume(t.Context(), publish)
			expect(t, err, codes.OK)
		}
		if info, err := os.Stat(publish.TargetPath); err != nil || info.IsDir() == block {
			t.Errorf("block %v: target is %v, %v", block, info, err)
		}
		if b.mounter.mounts[publish.TargetPath] != 43<<8 || b.mounter.ro[publish.TargetPath] != !block {
			t.Errorf("block %v: mounts %v, read-only %v", block, b.mounter.mounts, b.mounter.ro)
		}
		// Another pod on the node may have it too, unless it is ReadWriteOncePod.
		other := b.publishRequest("other")
		other.VolumeCapability = publish.VolumeCapability
		_, err = b.client.NodePublishVolume(t.Context(), other)
		expect(t, err, codes.OK)
		for _, path := range []string{publish.TargetPath, publish.TargetPath, other.TargetPath} {
			_, err := b.client.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: testVolume, TargetPath: path})
			expect(t, err, codes.OK)
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s is still there", path)
			}
		}
	}
}

func TestNodePublishOncePod(t *testing.T) {
	b := newNodeBench(t)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	request := func(target string) *csi.NodePublishVolumeRequest {
		r := b.publishRequest(target)
		r.VolumeCapability = proto.Clone(r.VolumeCapability).(*csi.VolumeCapability)
		r.VolumeCapability.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		return r
	}
	for range 2 {
		_, err = b.client.NodePublishVolume(t.Context(), request("first"))
		expect(t, err, codes.OK)
	}
	_, err = b.client.NodePublishVolume(t.Context(), request("second"))
	expect(t, err, codes.FailedPrecondition, "first")
}

func TestNodePublishTellsThePod(t *testing.T) {
	b := newNodeBench(t)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	request := b.publishRequest("target")
	request.VolumeContext = map[string]string{"csi.storage.k8s.io/pod.name": "web", "csi.storage.k8s.io/pod.namespace": "shop", "fsType": "xfs"}
	for range 2 {
		_, err := b.client.NodePublishVolume(t.Context(), request)
		expect(t, err, codes.OK)
	}
	want := "shop/web AoEVolumeReady: e7.3 is /dev/nbd0 (nbd) over eth1 and eth2, mounted as xfs"
	if got := strings.Join(b.recorder.events, "\n"); got != want {
		t.Errorf("events %q, want once %q", got, want)
	}
}

func TestNodeStatistics(t *testing.T) {
	b := newNodeBench(t)
	b.mounter.set("/pod/mount", 43<<8)
	b.mounter.set("/dev/nbd1", 43<<8+1) // stands for a bound node
	for _, test := range []struct {
		name     string
		volume   string
		path     string
		want     codes.Code
		expected []*csi.VolumeUsage
	}{
		{"no volume", "", "/pod/mount", codes.InvalidArgument, nil},
		{"no path", testVolume, "", codes.InvalidArgument, nil},
		{"not mounted", testVolume, "/pod", codes.NotFound, nil},
		{"file system", testVolume, "/pod/mount", codes.OK, []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: 100, Used: 40, Available: 60}, {Unit: csi.VolumeUsage_INODES, Total: 10, Used: 4, Available: 6}}},
		{"raw block", testVolume, "/dev/nbd1", codes.OK, []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: 1 << 30}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, err := b.client.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: test.volume, VolumePath: test.path})
			expect(t, err, test.want)
			if !slices.EqualFunc(response.GetUsage(), test.expected, func(a, b *csi.VolumeUsage) bool { return proto.Equal(a, b) }) {
				t.Errorf("usage %v", response.GetUsage())
			}
		})
	}
}

// slowAttacher lets a call wait until it is told to go on.
type slowAttacher struct {
	memoryAttacher
	entered, goOn chan struct{}
}

func (a *slowAttacher) Attach(ctx context.Context, id string, p volume.Publication) (string, error) {
	if id == testVolume {
		close(a.entered)
		<-a.goOn
	}
	return a.memoryAttacher.Attach(ctx, id, p)
}

func TestNodeOneCallPerVolume(t *testing.T) {
	attacher := &slowAttacher{entered: make(chan struct{}), goOn: make(chan struct{})}
	b := &nodeBench{mounter: &memoryMounter{}, dir: t.TempDir()}
	b.client = csi.NewNodeClient(serveTest(t, Config{Node: NewNode(NodeConfig{ID: testNode, Attacher: attacher, Mounter: b.mounter})}))
	first := make(chan error, 1)
	go func() {
		_, err := b.client.NodeStageVolume(context.Background(), b.stageRequest())
		first <- err
	}()
	<-attacher.entered
	_, err := b.client.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: testVolume, StagingTargetPath: b.staging()})
	expect(t, err, codes.Aborted, "stage")
	other := b.stageRequest()
	other.VolumeId, other.StagingTargetPath = "e7.4-abcdefghijklm234", filepath.Join(b.dir, "other")
	_, err = b.client.NodeStageVolume(t.Context(), other)
	expect(t, err, codes.OK)
	close(attacher.goOn)
	expect(t, <-first, codes.OK)
}

func TestNodeGetInfo(t *testing.T) {
	b := newNodeBench(t)
	info, err := b.client.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	expect(t, err, codes.OK)
	if info.GetNodeId() != testNode || info.GetMaxVolumesPerNode() != 256 || info.GetAccessibleTopology().GetSegments()[TopologyKey] != testSegment {
		t.Errorf("info %v", info)
	}
}
