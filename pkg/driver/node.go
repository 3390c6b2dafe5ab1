package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const (
	// unmountPatience is below the kubelet's two minutes for a call.
	unmountPatience = 90 * time.Second
	// detachTimeout is how long a volume that is to go waits for a target that does not answer.
	detachTimeout = 5 * time.Minute
)

// NodeConfig is what a node service needs.
type NodeConfig struct {
	// ID is the node's name.
	ID string
	// Segment is the Ethernet segment that the node is on.
	Segment  string
	Attacher Attacher
	Mounter  Mounter
	// Recorder may be nil.
	Recorder Recorder
}

// Node is CSI's node service. It keeps nothing but locks: what is attached is asked of the
// Attacher, what is mounted of the kernel, so that it can be killed at any point.
type Node struct {
	csi.UnimplementedNodeServer
	NodeConfig
	locks volumeLocks
	// patience is how long an unmount may take before the call answers "not yet"; detachTimeout how long such answers go on.
	patience, detachTimeout time.Duration
	// leaving remembers since when a volume is to go (ID → time.Time). After a restart of the process it counts anew.
	leaving sync.Map
}

// NewNode returns the node service.
func NewNode(c NodeConfig) *Node {
	if c.Recorder == nil {
		c.Recorder = noEvents{}
	}
	return &Node{NodeConfig: c, patience: unmountPatience, detachTimeout: detachTimeout}
}

// NodeGetCapabilities lists what this service does.
func (*Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var response csi.NodeGetCapabilitiesResponse
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return &response, nil
}

// NodeGetInfo says which node this is and where.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.ID,
		MaxVolumesPerNode:  maxVolumesPerNode,
		AccessibleTopology: topologyOf(n.Segment),
	}, nil
}

// begin checks what every call has and takes the volume. what names the path for people. The caller calls unlock if err is nil.
func (n *Node) begin(operation, id, what, path string) (unlock func(), err error) {
	switch {
	case id == "":
		return nil, fmt.Errorf("%s volume: %w", operation, invalid("volume ID missing"))
	case path == "":
		return nil, fmt.Errorf("%s volume %s: %w", operation, id, invalid("%s missing", what))
	case !filepath.IsAbs(path):
		return nil, fmt.Errorf("%s volume %s: %w", operation, id, invalid("%s %q is not absolute", what, path))
	}
	return n.locks.lock(id, operation)
}

// deviceNumber returns the volume's device with its number; volume.ErrPrecondition if it is not attached.
func (n *Node) deviceNumber(ctx context.Context, id string) (*volume.Attachment, uint64, error) {
	attachment, err := n.Attacher.Device(ctx, id)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, 0, fmt.Errorf("%w: not attached to this node: stage it first", volume.ErrPrecondition)
	}
	if err != nil {
		return nil, 0, err
	}
	number, err := n.Mounter.DeviceNumber(attachment.Device)
	return attachment, number, err
}
