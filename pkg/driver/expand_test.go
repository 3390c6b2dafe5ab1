package driver

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func TestControllerExpandVolume(t *testing.T) {
	const mi = 1 << 20
	for _, test := range []struct {
		name   string
		change func(*csi.ControllerExpandVolumeRequest)
		fail   error
		want   codes.Code
		text   string
		size   int64
	}{
		{"larger", func(*csi.ControllerExpandVolumeRequest) {}, nil, codes.OK, "", 128 * mi},
		{"rounded up", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange.RequiredBytes-- }, nil, codes.OK, "", 128 * mi},
		{"smaller", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange.RequiredBytes = 1 }, nil, codes.OK, "", 64 * mi},
		{"for a block volume", func(r *csi.ControllerExpandVolumeRequest) {
			r.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
		}, nil, codes.OK, "", 128 * mi},
		{"no volume", func(r *csi.ControllerExpandVolumeRequest) { r.VolumeId = "" }, nil, codes.InvalidArgument, "volume ID missing", 0},
		{"no range", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange = nil }, nil, codes.InvalidArgument, "range missing", 0},
		{"empty range", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange.RequiredBytes = 0 }, nil, codes.InvalidArgument, "range missing", 0},
		{"negative", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, nil, codes.InvalidArgument, "negative", 0},
		{"shared", func(r *csi.ControllerExpandVolumeRequest) {
			r.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, nil, codes.InvalidArgument, "MULTI_NODE", 0},
		{"unknown volume", func(r *csi.ControllerExpandVolumeRequest) { r.VolumeId = "e7.9-abcdefghijklm234" }, nil, codes.NotFound, "e7.9", 0},
		{"limit below what it has", func(r *csi.ControllerExpandVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: mi, LimitBytes: 2 * mi}
		}, nil, codes.OutOfRange, "limit", 0},
		{"larger than any shelf", func(r *csi.ControllerExpandVolumeRequest) { r.CapacityRange.RequiredBytes = testCapacity + 1 }, nil, codes.OutOfRange, "", 0},
		{"no room now", func(*csi.ControllerExpandVolumeRequest) {}, fmt.Errorf("%w: 5 bytes", volume.ErrNoSpace), codes.ResourceExhausted, "", 0},
		{"shelf away", func(*csi.ControllerExpandVolumeRequest) {}, volume.ErrUnavailable, codes.Unavailable, "", 0},
		{"another call at it", func(*csi.ControllerExpandVolumeRequest) {}, volume.ErrPending, codes.Aborted, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			volumes := newMemoryVolumes()
			v, err := volumes.Create(t.Context(), volume.CreateRequest{Name: "pvc-1", RequiredBytes: 64 * mi})
			if err != nil {
				t.Fatal(err)
			}
			volumes.fail = test.fail
			request := &csi.ControllerExpandVolumeRequest{VolumeId: v.ID.String(), CapacityRange: &csi.CapacityRange{RequiredBytes: 128 * mi}}
			test.change(request)
			response, err := controllerClient(t, volumes).ControllerExpandVolume(t.Context(), request)
			if test.want == codes.OK {
				expect(t, err, codes.OK)
			} else {
				expect(t, err, test.want, test.text)
			}
			if err == nil && (response.GetCapacityBytes() != test.size || !response.GetNodeExpansionRequired()) {
				t.Errorf("answer %v, want %d bytes and an expansion on the node", response, test.size)
			}
		})
	}
}

// expandRequest is what the kubelet asks for a file system volume that is published read-only to one of its pods.
func (b *nodeBench) expandRequest() *csi.NodeExpandVolumeRequest {
	return &csi.NodeExpandVolumeRequest{
		VolumeId: testVolume, VolumePath: filepath.Join(b.dir, "pod"), StagingTargetPath: b.staging(),
		CapacityRange: &csi.CapacityRange{RequiredBytes: 2 << 30}, VolumeCapability: mountCapability(""),
	}
}

func TestNodeExpandVolume(t *testing.T) {
	type request = csi.NodeExpandVolumeRequest
	for _, test := range []struct {
		name   string
		change func(*nodeBench, *request)
		want   codes.Code
		text   string
		grown  string // where the file system was grown; below the bench's directory
	}{
		{"as the kubelet asks", func(*nodeBench, *request) {}, codes.OK, "", "staging"},
		{"no staging path", func(_ *nodeBench, r *request) { r.StagingTargetPath = "" }, codes.OK, "", "pod"},
		{"while it is staged", func(b *nodeBench, r *request) { r.VolumePath = b.staging() }, codes.OK, "", "staging"},
		{"no range", func(_ *nodeBench, r *request) { r.CapacityRange = nil }, codes.OK, "", "staging"},
		{"within a limit", func(_ *nodeBench, r *request) { r.CapacityRange.LimitBytes = 2 << 30 }, codes.OK, "", "staging"},
		{"no volume", func(_ *nodeBench, r *request) { r.VolumeId = "" }, codes.InvalidArgument, "volume ID missing", ""},
		{"no path", func(_ *nodeBench, r *request) { r.VolumePath = "" }, codes.InvalidArgument, "volume path missing", ""},
		{"wrong range", func(_ *nodeBench, r *request) { r.CapacityRange.LimitBytes = 1 }, codes.InvalidArgument, "range", ""},
		{"not attached", func(_ *nodeBench, r *request) { r.VolumeId = "e7.4-abcdefghijklm234" }, codes.NotFound, "not attached", ""},
		{"not mounted there", func(b *nodeBench, r *request) {
			r.VolumePath, r.StagingTargetPath = filepath.Join(b.dir, "other"), ""
		}, codes.NotFound, "is not mounted at", ""},
		{"another device there", func(b *nodeBench, r *request) {
			b.mounter.set(filepath.Join(b.dir, "other"), 4711)
			r.VolumePath, r.StagingTargetPath = filepath.Join(b.dir, "other"), ""
		}, codes.NotFound, "is not mounted at", ""},
		{"larger than the limit already", func(_ *nodeBench, r *request) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1, LimitBytes: 1 << 20}
		}, codes.OutOfRange, "limit", ""},
		{"target away", func(b *nodeBench, _ *request) {
			b.attacher.fail = status.Error(codes.Unavailable, "cannot grow now: e7.3 does not say its size")
		}, codes.Unavailable, "cannot grow now", ""},
		{"kernel that cannot", func(b *nodeBench, _ *request) {
			b.attacher.fail = status.Error(codes.FailedPrecondition, "live device cannot grow here: restart the pod")
		}, codes.FailedPrecondition, "restart the pod", ""},
		{"file system that cannot", func(b *nodeBench, _ *request) { b.mounter.fail = errors.New("resize2fs says no") }, codes.Internal, "resize2fs says no", "staging"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNodeBench(t)
			if _, err := b.client.NodeStageVolume(t.Context(), b.stageRequest()); err != nil {
				t.Fatal(err)
			}
			if _, err := b.client.NodePublishVolume(t.Context(), b.publishRequest("pod")); err != nil {
				t.Fatal(err)
			}
			r := b.expandRequest()
			test.change(b, r)
			response, err := b.client.NodeExpandVolume(t.Context(), r)
			if test.want == codes.OK {
				expect(t, err, codes.OK)
			} else {
				expect(t, err, test.want, test.text)
			}
			var grown []string
			if test.grown != "" {
				grown = []string{"/dev/nbd0 " + filepath.Join(b.dir, test.grown)}
			}
			if !slices.Equal(b.mounter.grown, grown) {
				t.Errorf("grown %q, want %q", b.mounter.grown, grown)
			}
			if err == nil && response.GetCapacityBytes() < r.GetCapacityRange().GetRequiredBytes() {
				t.Errorf("answer %v", response)
			}
		})
	}
}

// A raw block volume has no file system to grow, whichever of its paths the kubelet names.
func TestNodeExpandRawBlock(t *testing.T) {
	b := newNodeBench(t)
	stage, publish := b.stageRequest(), b.publishRequest("disk")
	stage.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	publish.VolumeCapability = stage.VolumeCapability
	if _, err := b.client.NodeStageVolume(t.Context(), stage); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.NodePublishVolume(t.Context(), publish); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{publish.TargetPath, "/dev/nbd0"} {
		response, err := b.client.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{
			VolumeId: testVolume, VolumePath: path, StagingTargetPath: b.staging(), VolumeCapability: stage.VolumeCapability,
			CapacityRange: &csi.CapacityRange{RequiredBytes: 2 << 30},
		})
		expect(t, err, codes.OK)
		if response.GetCapacityBytes() != 2<<30 {
			t.Errorf("%s: %v", path, response)
		}
	}
	if len(b.mounter.grown) > 0 || !slices.Equal(b.attacher.sizes, []int64{2 << 30, 2 << 30}) {
		t.Errorf("grown %q, sizes %v", b.mounter.grown, b.attacher.sizes)
	}
}

// Staging again what is mounted already grows the file system, in case an earlier call ended right before that.
func TestNodeStageAgainGrows(t *testing.T) {
	b := newNodeBench(t)
	for range 2 {
		_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
		expect(t, err, codes.OK)
	}
	if want := []string{"/dev/nbd0 " + b.staging()}; !slices.Equal(b.mounter.grown, want) {
		t.Errorf("grown %q, want %q", b.mounter.grown, want)
	}
}
