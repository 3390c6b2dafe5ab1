package driver

import (
	"context"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// staging is a checked NodeStageVolumeRequest.
type staging struct {
	id          string
	path        string
	publication volume.Publication
	fsType      string // empty for a raw block volume
	mkfsOptions []string
	mountFlags  []string
}

// NodeStageVolume attaches the volume and, unless it is a raw block volume, mounts it at the staging path, with a new file
// system if it is blank.
func (n *Node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	unlock, err := n.begin("stage", req.GetVolumeId(), "staging path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := parseStaging(req)
	if err == nil {
		err = n.stage(ctx, s)
	}
	if err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func parseStaging(req *csi.NodeStageVolumeRequest) (*staging, error) {
	capability := req.GetVolumeCapability()
	if err := checkCapability(capability); err != nil {
		return nil, err
	}
	publication, err := decodePublication(req.GetPublishContext())
	if err != nil {
		return nil, err
	}
	s := &staging{id: req.GetVolumeId(), path: req.GetStagingTargetPath(), publication: publication}
	if capability.GetMount() == nil {
		return s, nil
	}
	fromContext, err := parseFSType(req.GetVolumeContext()[ContextFSType])
	if err != nil {
		return nil, err
	}
	if s.fsType, err = parseFSType(capability.GetMount().GetFsType()); err != nil {
		return nil, err
	}
	for _, candidate := range []string{fromContext, defaultFilesystem} {
		if s.fsType == "" {
			s.fsType = candidate
		}
	}
	s.mkfsOptions = strings.Fields(req.GetVolumeContext()[ContextMkfsOptions])
	s.mountFlags = capability.GetMount().GetMountFlags()
	if publication.ReadOnly {
		s.mountFlags = append([]string{"ro"}, s.mountFlags...)
	}
	return s, nil
}

func (n *Node) stage(ctx context.Context, s *staging) error {
	device, err := n.Attacher.Attach(ctx, s.id, s.publication)
	if err != nil {
		return err
	}
	if s.fsType == "" {
		return nil
	}
	if err := n.mountStaged(s, device); err != nil {
		if undo := n.undoAttach(ctx, s.id, device); undo != nil {
			// The cause decides the code; what came after it is for people.
			err = fmt.Errorf("%w (and detaching after that: %v)", err, undo) //nolint:errorlint // err alone decides
		}
		return err
	}
	return nil
}

// mountStaged makes sure that the staging path shows the volume's device. What another device left there is a mount
// that outlived its device: nobody can reach that device through CSI any more, so it goes.
func (n *Node) mountStaged(s *staging, device string) error {
	number, err := n.Mounter.DeviceNumber(device)
	if err != nil {
		return err
	}
	mounted, err := n.Mounter.Source(s.path)
	if err != nil {
		return err
	}
	if mounted == number {
		return n.Mounter.Grow(device, s.path) // an earlier call may have been cut off right before that
	}
	if mounted != 0 {
		klog.InfoS("Staging path shows a stale mount, taking it away", "volume", s.id, "path", s.path, "device", device)
		if err := n.Mounter.Unmount(s.path); err != nil {
			return err
		}
	}
	return n.Mounter.FormatAndMount(device, s.path, s.fsType, s.mkfsOptions, s.mountFlags)
}

// undoAttach takes back an attach whose mount failed, unless the device is in use: the kubelet unstages only what it
// believes to be staged, and a device that nobody knows of would keep the target busy.
func (n *Node) undoAttach(ctx context.Context, id, device string) error {
	number, err := n.Mounter.DeviceNumber(device)
	if err == nil {
		references, err := n.Mounter.References(number)
		if err != nil || len(references) > 0 {
			return err
		}
	}
	return n.detach(context.WithoutCancel(ctx), id, false)
}
