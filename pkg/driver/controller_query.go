package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// ValidateVolumeCapabilities says whether an existing volume can be used as asked, and in words why not.
func (c *Controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	refused := func(err error) error { return fmt.Errorf("validate volume %s: %w", req.GetVolumeId(), err) }
	if req.GetVolumeId() == "" {
		return nil, refused(invalid("volume ID missing"))
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, refused(invalid("volume capabilities missing"))
	}
	found, err := c.volumes.Get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	err = checkCapabilities(req.GetVolumeCapabilities())
	if err == nil {
		_, err = fsTypeOf(found.Parameters.FSType, req.GetVolumeCapabilities())
	}
	if err == nil {
		_, _, err = parseParameters(req.GetParameters())
	}
	if err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// ListVolumes lists volumes with the nodes that each is published to.
func (c *Controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, fmt.Errorf("list volumes: %w", invalid("%d entries at most", req.GetMaxEntries()))
	}
	volumes, next, err := c.volumes.List(ctx, req.GetStartingToken(), int(req.GetMaxEntries()))
	if err != nil {
		return nil, err
	}
	response := &csi.ListVolumesResponse{NextToken: next}
	for i := range volumes {
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{
			Volume: describe(&volumes[i]),
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: volumes[i].Nodes},
		})
	}
	return response, nil
}

// GetCapacity says how much could be made with these parameters at this place. Where no volume could be used, it is 0.
func (c *Controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	parameters, _, err := parseParameters(req.GetParameters())
	if err != nil {
		return nil, fmt.Errorf("get capacity: %w", err)
	}
	wanted := volume.CapacityRequest{Parameters: parameters}
	if len(req.GetVolumeCapabilities()) > 0 && checkCapabilities(req.GetVolumeCapabilities()) != nil {
		return &csi.GetCapacityResponse{}, nil
	}
	if place := req.GetAccessibleTopology(); place != nil {
		wanted.Segments, err = segmentsOf(&csi.TopologyRequirement{Requisite: []*csi.Topology{place}})
		if errors.Is(err, volume.ErrNoSpace) {
			return &csi.GetCapacityResponse{}, nil
		}
	}
	capacity, err := c.volumes.Capacity(ctx, wanted)
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: capacity.AvailableBytes,
		MaximumVolumeSize: wrapperspb.Int64(capacity.MaxVolumeBytes),
		MinimumVolumeSize: wrapperspb.Int64(volume.SizeUnit),
	}, nil
}
