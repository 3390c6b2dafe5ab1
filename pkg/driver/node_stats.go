package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// NodeGetVolumeStats measures what is published or staged at a path. It takes no lock and asks neither initiator nor
// target, so that statistics of one volume never wait for another.
func (n *Node) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	usage, err := n.usage(req)
	if err != nil {
		return nil, fmt.Errorf("statistics of volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: usage}, nil
}

func (n *Node) usage(req *csi.NodeGetVolumeStatsRequest) ([]*csi.VolumeUsage, error) {
	path := req.GetVolumePath()
	switch {
	case req.GetVolumeId() == "":
		return nil, invalid("volume ID missing")
	case path == "":
		return nil, invalid("volume path missing")
	}
	shown, err := n.Mounter.Source(path)
	if err != nil {
		return nil, err
	}
	if shown == 0 {
		return nil, fmt.Errorf("%w: nothing is mounted at %s", volume.ErrNotFound, path)
	}
	if _, err := n.Mounter.DeviceNumber(path); err == nil {
		size, err := n.Mounter.DeviceSize(path)
		return []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: size}}, err
	}
	bytes, inodes, err := n.Mounter.Usage(path)
	if err != nil {
		return nil, err
	}
	return []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: bytes[0], Used: bytes[1], Available: bytes[2]},
		{Unit: csi.VolumeUsage_INODES, Total: inodes[0], Used: inodes[1], Available: inodes[2]},
	}, nil
}
