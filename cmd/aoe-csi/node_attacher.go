package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// nodeAttacher is the driver's Attacher over the initiator's API.
type nodeAttacher struct {
	client initiatorv1.InitiatorClient
}

// Attach implements driver.Attacher.
func (a *nodeAttacher) Attach(ctx context.Context, id string, p volume.Publication) (string, error) {
	attached, err := a.client.Attach(ctx, &initiatorv1.AttachRequest{
		VolumeId:   id,
		Target:     &initiatorv1.Target{Shelf: uint32(p.Target.Shelf), Slot: uint32(p.Target.Slot)},
		Generation: string(p.Generation),
		Frontend:   p.Frontend, FrontendReason: p.FrontendReason,
		DeadTime: durationpb.New(p.DeadTime),
		ReadOnly: p.ReadOnly, Macs: p.MACs,
	})
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", p.Target, explainInitiator(err))
	}
	return attached.GetDevice(), nil
}

// Resize implements driver.Attacher.
func (a *nodeAttacher) Resize(ctx context.Context, id string, wanted int64) (int64, error) {
	resized, err := a.client.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: id, WantedBytes: uint64(wanted)})
	if err != nil {
		return 0, explainInitiator(err)
	}
	return int64(resized.GetSizeBytes()), nil
}

// Detach implements driver.Attacher.
func (a *nodeAttacher) Detach(ctx context.Context, id string, force bool) (lost string, err error) {
	response, err := a.client.Detach(ctx, &initiatorv1.DetachRequest{VolumeId: id, Force: force})
	if err != nil {
		return "", fmt.Errorf("detach: %w", explainInitiator(err))
	}
	return response.GetGivenUp(), nil
}

// Device implements driver.Attacher.
func (a *nodeAttacher) Device(ctx context.Context, id string) (*volume.Attachment, error) {
	attached, err := a.client.Get(ctx, &initiatorv1.GetRequest{VolumeId: id})
	if status.Code(err) == codes.NotFound {
		return nil, fmt.Errorf("%w: %s is not attached", volume.ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the device: %w", explainInitiator(err))
	}
	found := nodeAttachment(attached)
	return &found, nil
}

// initiatorError is an error of the initiator in its own words, with its code.
type initiatorError struct {
	status *status.Status
}

func (e *initiatorError) Error() string {
	if e.status.Code() == codes.Unavailable {
		return "initiator: " + e.status.Message() + " (is the aoe-csi initiator running on this node?)"
	}
	return "initiator: " + e.status.Message()
}

// GRPCStatus lets the driver choose the code of its answer.
func (e *initiatorError) GRPCStatus() *status.Status { return e.status }

func explainInitiator(err error) error { return &initiatorError{status.Convert(err)} }

// nodeAttachment translates what the initiator tells of a device.
func nodeAttachment(a *initiatorv1.Attachment) volume.Attachment {
	translated := volume.Attachment{
		VolumeID: a.GetVolumeId(), Device: a.GetDevice(),
		Frontend: a.GetFrontend(), FrontendReason: a.GetFrontendReason(),
		State: a.GetState(), Message: a.GetMessage(),
	}
	if since := a.GetSince(); since != nil {
		translated.Since = since.AsTime()
	}
	for _, p := range a.GetPaths() {
		translated.Paths = append(translated.Paths, volume.Path{
			Interface: p.GetInterface(), RemoteMAC: p.GetRemoteMac(), State: p.GetState(), Message: p.GetMessage(),
		})
	}
	return translated
}
