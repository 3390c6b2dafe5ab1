package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// NodeUnstageVolume unmounts the staging path and detaches the volume. Neither being there is success. The path itself is the
// container orchestrator's and stays.
//
// It comes to an end also when the target is gone for good: after detachTimeout of "not yet" the device is given up, and
// whatever waits for it in the kernel fails, be it an unmount of an earlier call, or a stage or an expansion that hangs.
func (n *Node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id := req.GetVolumeId()
	unlock, err := n.begin("unstage", id, "staging path", req.GetStagingTargetPath())
	if errors.Is(err, volume.ErrPending) {
		return nil, errors.Join(err, n.giveUpHolder(ctx, id))
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.unstage(ctx, id, req.GetStagingTargetPath()); err != nil {
		return nil, fmt.Errorf("unstage volume %s: %w", id, err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (n *Node) unstage(ctx context.Context, id, path string) error {
	since := n.leavingSince(id)
	if err := n.unmountPatiently(ctx, path); err != nil {
		return err
	}
	attachment, err := n.Attacher.Device(ctx, id)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		attachment = &volume.Attachment{} // the initiator may be taking it down still
	case err != nil:
		return err
	default:
		if err := n.checkUnused(attachment.Device); err != nil {
			return err
		}
	}
	if err := n.detach(ctx, id, n.hopeless(attachment, since)); err != nil {
		return err
	}
	n.leaving.Delete(id)
	return nil
}

// detach tells people if data may be lost with it.
func (n *Node) detach(ctx context.Context, id string, force bool) error {
	lost, err := n.Attacher.Detach(ctx, id, force)
	if err == nil && lost != "" {
		n.Recorder.VolumeLoss(id, "IOGivenUp", fmt.Sprintf("node %s detached it: %s", n.ID, lost))
	}
	return err
}

// unmountPatiently unmounts, but does not wait for ever. The kernel takes the mount out of the table first and writes back
// then, so the call that comes next finds nothing mounted and goes on to detach, which refuses while the kernel writes.
func (n *Node) unmountPatiently(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, n.patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Mounter.Unmount(path) }() // ends when its I/O ends: at the latest with a forced detach
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: what was written to %s is not on the target yet", volume.ErrUnavailable, path)
	}
}

// checkUnused refuses while a pod still shows the device.
func (n *Node) checkUnused(device string) error {
	number, err := n.Mounter.DeviceNumber(device)
	if err != nil {
		return nil // a device that is gone has no mounts that detaching could hurt
	}
	references, err := n.Mounter.References(number)
	if err == nil && len(references) > 0 {
		err = fmt.Errorf("%w: %s is still mounted at %s", volume.ErrInUse, device, strings.Join(references, ", "))
	}
	return err
}

// leavingSince returns when the volume was first asked to go.
func (n *Node) leavingSince(id string) time.Time {
	since, _ := n.leaving.LoadOrStore(id, time.Now())
	return since.(time.Time)
}

// hopeless says whether a volume that is to go has waited long enough for a target that does not answer.
func (n *Node) hopeless(a *volume.Attachment, since time.Time) bool {
	if (a.State != "stalled" && a.State != "failed") || time.Since(since) < n.detachTimeout {
		return false
	}
	klog.InfoS("Giving up what the target did not take", "volume", a.VolumeID, "device", a.Device, "state", a.State,
		"message", a.Message, "waited", n.detachTimeout)
	return true
}

// giveUpHolder ends a call that has the volume and hangs on a target that does not answer, mkfs or resize2fs say, when the volume has
// been asked to go for long enough. One that makes progress is left alone.
func (n *Node) giveUpHolder(ctx context.Context, id string) error {
	since := n.leavingSince(id)
	if holder := n.locks.holder(id); holder != "stage" && holder != "expand" {
		return nil
	}
	attachment, err := n.Attacher.Device(ctx, id)
	if err != nil || !n.hopeless(attachment, since) {
		return nil // the call that has the volume is answered first
	}
	return n.detach(ctx, id, true)
}
