package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// NodeExpandVolume makes the device, and the file system on it, as large as the volume has become on its shelf. FAILED_PRECONDITION tells the
// kubelet not to try again before the volume is mounted anew: so it is for devices that cannot grow while they live.
func (n *Node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	size, err := n.expand(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

func (n *Node) expand(ctx context.Context, req *csi.NodeExpandVolumeRequest) (int64, error) {
	required, limit := req.GetCapacityRange().GetRequiredBytes(), req.GetCapacityRange().GetLimitBytes()
	switch {
	case req.GetVolumeId() == "":
		return 0, invalid("volume ID missing")
	case req.GetVolumePath() == "":
		return 0, invalid("volume path missing")
	case required < 0 || limit < 0 || limit > 0 && required > limit:
		return 0, invalid("capacity range from %d to %d bytes", required, limit)
	}
	unlock, err := n.locks.lock(req.GetVolumeId(), "expand")
	if err != nil {
		return 0, err
	}
	defer unlock()
	attachment, err := n.Attacher.Device(ctx, req.GetVolumeId())
	if err != nil {
		return 0, err
	}
	path, raw, err := n.shownAt(req, attachment.Device)
	if err != nil {
		return 0, err
	}
	size, err := n.Attacher.Resize(ctx, req.GetVolumeId(), required)
	if err != nil {
		return 0, err
	}
	if limit > 0 && size > limit {
		return 0, fmt.Errorf("%w: %s has %d bytes, the limit is %d", volume.ErrOutOfRange, attachment.Device, size, limit)
	}
	if raw {
		return size, nil
	}
	return size, n.Mounter.Grow(attachment.Device, path)
}

// shownAt finds where the volume's device is mounted: at the staging path if there is one, since a pod's mount may be read-only, else at the
// volume path. raw: the device itself is there.
func (n *Node) shownAt(req *csi.NodeExpandVolumeRequest, device string) (path string, raw bool, err error) {
	number, err := n.Mounter.DeviceNumber(device)
	if err != nil {
		return "", false, err
	}
	path = req.GetVolumePath()
	if node, err := n.Mounter.DeviceNumber(path); err == nil && node == number {
		return path, true, nil
	}
	for _, candidate := range []string{req.GetStagingTargetPath(), path} {
		if candidate == "" {
			continue
		}
		shown, err := n.Mounter.Source(candidate)
		if err != nil {
			return "", false, err
		}
		if shown == number {
			return candidate, req.GetVolumeCapability().GetBlock() != nil, nil
		}
	}
	return "", false, fmt.Errorf("%w: %s is not mounted at %s", volume.ErrNotFound, device, path)
}
