package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// NodePublishVolume shows a staged volume at a pod's path: its file system on a directory, or its device node on a file.
func (n *Node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	unlock, err := n.begin("publish", req.GetVolumeId(), "target path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err = checkCapability(req.GetVolumeCapability()); err == nil && req.GetStagingTargetPath() == "" {
		err = invalid("staging path missing")
	}
	if err == nil {
		err = n.publish(ctx, req)
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n *Node) publish(ctx context.Context, req *csi.NodePublishVolumeRequest) error {
	attachment, number, err := n.deviceNumber(ctx, req.GetVolumeId())
	if err != nil {
		return err
	}
	source := attachment.Device
	if req.GetVolumeCapability().GetMount() != nil {
		source = req.GetStagingTargetPath()
		staged, err := n.Mounter.Source(source)
		if err != nil {
			return err
		}
		if staged != number {
			return fmt.Errorf("%w: %s does not show %s: stage it first", volume.ErrPrecondition, source, attachment.Device)
		}
	}
	shown, err := n.Mounter.Source(req.GetTargetPath())
	if err != nil {
		return err
	}
	if shown == 0 {
		if err := n.checkSingleWriter(req, number); err != nil {
			return err
		}
	}
	if err := n.Mounter.Bind(source, req.GetTargetPath(), req.GetReadonly()); err != nil {
		return err
	}
	if shown == 0 {
		n.tellPod(req, attachment)
	}
	return nil
}

// checkSingleWriter refuses a second path for a volume that one pod at a time may have. Whoever shows the device at any
// path but the staging path has it.
func (n *Node) checkSingleWriter(req *csi.NodePublishVolumeRequest, number uint64) error {
	if req.GetVolumeCapability().GetAccessMode().GetMode() != csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		return nil
	}
	references, err := n.Mounter.References(number)
	if err != nil {
		return err
	}
	references = slices.DeleteFunc(references, func(path string) bool { return path == req.GetStagingTargetPath() })
	if len(references) > 0 {
		return fmt.Errorf("%w: one pod at a time may have it, and it is at %s already", volume.ErrInUse, strings.Join(references, ", "))
	}
	return nil
}

// tellPod puts into the pod's events where its volume is.
func (n *Node) tellPod(req *csi.NodePublishVolumeRequest, a *volume.Attachment) {
	context := req.GetVolumeContext()
	pod := Pod{Namespace: context[podNamespace], Name: context[podName], UID: context[podUID]}
	if pod.Name == "" {
		return
	}
	target := req.GetVolumeId()
	if id, err := volume.ParseID(target); err == nil {
		target = id.Addr.String()
	}
	if at := req.GetPublishContext()[ContextTarget]; at != "" {
		target = at
	}
	how := "as a raw block device"
	if mount := req.GetVolumeCapability().GetMount(); mount != nil {
		how = "mounted as " + firstOf(mount.GetFsType(), context[ContextFSType], defaultFilesystem)
	}
	if req.GetReadonly() {
		how += ", read-only"
	}
	n.Recorder.PodEvent(pod, "AoEVolumeReady", fmt.Sprintf("%s is %s (%s)%s, %s", target, a.Device, a.Frontend, over(a.Paths), how))
}

// over names the paths in use, " over eth1 and eth2"; nothing if there are none.
func over(paths []volume.Path) string {
	var names []string
	for _, p := range paths {
		name := p.Interface
		if name == "local" {
			name = "the local socket"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " over " + strings.Join(names, " and ")
}

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// NodeUnpublishVolume takes the volume away from a pod's path and removes the path. Nothing there is success.
func (n *Node) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	unlock, err := n.begin("unpublish", req.GetVolumeId(), "target path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.Mounter.Remove(req.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("unpublish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
