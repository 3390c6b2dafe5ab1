package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Controller is CSI's controller service over Volumes. It is safe for concurrent use as far as those are.
type Controller struct {
	csi.UnimplementedControllerServer
	volumes Volumes
}

// NewController returns the controller service.
func NewController(volumes Volumes) *Controller { return &Controller{volumes: volumes} }

// ControllerGetCapabilities lists what this service does.
func (*Controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var response csi.ControllerGetCapabilitiesResponse
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_READONLY,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return &response, nil
}

// CreateVolume makes a volume, or finds the one that an earlier call with this name made.
func (c *Controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	wanted, err := createRequest(req)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", req.GetName(), err)
	}
	made, err := c.volumes.Create(ctx, wanted)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: describe(made)}, nil
}

// createRequest checks a request and translates it.
func createRequest(req *csi.CreateVolumeRequest) (volume.CreateRequest, error) {
	var none volume.CreateRequest
	if req.GetName() == "" {
		return none, invalid("name missing")
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return none, err
	}
	if req.GetVolumeContentSource() != nil {
		return none, invalid("a volume from a snapshot or from another volume is not supported")
	}
	if len(req.GetMutableParameters()) > 0 {
		return none, invalid("mutable parameters are not supported")
	}
	parameters, claim, err := parseParameters(req.GetParameters())
	if err != nil {
		return none, err
	}
	if parameters.FSType, err = fsTypeOf(parameters.FSType, req.GetVolumeCapabilities()); err != nil {
		return none, err
	}
	segments, err := segmentsOf(req.GetAccessibilityRequirements())
	if err != nil {
		return none, err
	}
	wanted := volume.CreateRequest{
		Name:          req.GetName(),
		RequiredBytes: req.GetCapacityRange().GetRequiredBytes(),
		LimitBytes:    req.GetCapacityRange().GetLimitBytes(),
		Parameters:    parameters,
		Segments:      segments,
		Claim:         claim,
	}
	if r := req.GetCapacityRange(); r != nil && r.GetRequiredBytes() == 0 && r.GetLimitBytes() == 0 {
		return none, invalid("capacity range is empty: a size of 0")
	}
	if _, err := wanted.Size(); err != nil {
		return none, err
	}
	return wanted, fitFilesystem(&wanted, req.GetVolumeCapabilities())
}

// fitFilesystem makes a volume that will be mounted large enough for its file system, or says that the limit forbids it.
func fitFilesystem(wanted *volume.CreateRequest, capabilities []*csi.VolumeCapability) error {
	least := filesystems[wanted.Parameters.FSType]
	mounted := false
	for _, c := range capabilities {
		mounted = mounted || c.GetMount() != nil
	}
	switch {
	case !mounted || wanted.RequiredBytes >= least:
	case wanted.LimitBytes > 0 && wanted.LimitBytes < least:
		return fmt.Errorf("%w: %s needs at least %d bytes, the limit is %d",
			volume.ErrOutOfRange, wanted.Parameters.FSType, least, wanted.LimitBytes)
	case wanted.RequiredBytes > 0:
		wanted.RequiredBytes = least
	}
	return nil
}

// describe is a volume in CSI's words.
func describe(v *volume.Volume) *csi.Volume {
	described := &csi.Volume{
		VolumeId:      v.ID.String(),
		CapacityBytes: v.SizeBytes,
		VolumeContext: map[string]string{ContextFSType: v.Parameters.FSType},
	}
	if v.Parameters.MkfsOptions != "" {
		described.VolumeContext[ContextMkfsOptions] = v.Parameters.MkfsOptions
	}
	if place := topologyOf(v.Segment); place != nil {
		described.AccessibleTopology = []*csi.Topology{place}
	}
	return described
}

// DeleteVolume removes a volume and its data. One that does not exist is success.
func (c *Controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("delete volume: %w", invalid("volume ID missing"))
	}
	if err := c.volumes.Delete(ctx, req.GetVolumeId()); err != nil && !errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ControllerExpandVolume makes a volume larger on its shelf. The device follows in NodeExpandVolume, or when it is attached the next time.
func (c *Controller) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	required, limit := req.GetCapacityRange().GetRequiredBytes(), req.GetCapacityRange().GetLimitBytes()
	var err error
	switch {
	case req.GetVolumeId() == "":
		err = invalid("volume ID missing")
	case required == 0 && limit == 0:
		err = invalid("capacity range missing")
	case req.GetVolumeCapability() != nil:
		err = checkCapability(req.GetVolumeCapability())
	}
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", req.GetVolumeId(), err)
	}
	size, err := c.volumes.Expand(ctx, req.GetVolumeId(), required, limit)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

// ControllerPublishVolume admits a node and tells it where the volume is and how to know it.
func (c *Controller) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	err := checkCapability(req.GetVolumeCapability())
	switch {
	case req.GetVolumeId() == "":
		err = invalid("volume ID missing")
	case req.GetNodeId() == "":
		err = invalid("node ID missing")
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s to node %s: %w", req.GetVolumeId(), req.GetNodeId(), err)
	}
	publication, err := c.volumes.Publish(ctx, req.GetVolumeId(), req.GetNodeId(), req.GetReadonly())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{PublishContext: encodePublication(publication)}, nil
}

// ControllerUnpublishVolume takes a node off a volume, every node if none is named. It succeeds only when the node cannot
// write any more; a volume that does not exist cannot be written by anybody.
func (c *Controller) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("unpublish volume: %w", invalid("volume ID missing"))
	}
	err := c.volumes.Unpublish(ctx, req.GetVolumeId(), req.GetNodeId())
	if err != nil && !errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}
