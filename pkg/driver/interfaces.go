package driver

import (
	"context"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Volumes is what the controller needs. Every method can be repeated with the same result,
// also after it was cut off. Handles are strings as they come in: a malformed one is
// volume.ErrNotFound, or success where absence is.
type Volumes interface {
	// Create makes the volume or finds the one of this name; volume.ErrConflict if that differs.
	Create(ctx context.Context, r volume.CreateRequest) (*volume.Volume, error)
	// Delete removes the volume; volume.ErrInUse while a node is admitted.
	Delete(ctx context.Context, id string) error
	Get(ctx context.Context, id string) (*volume.Volume, error)
	// Expand makes the volume at least required and at most limit bytes large (0: no limit), never smaller, and returns its size.
	Expand(ctx context.Context, id string, required, limit int64) (int64, error)
	// List returns at most max volumes (0: as many as it likes) from token on ("" is the start), and the token of
	// the rest; volume.ErrBadToken for a token that it did not give out.
	List(ctx context.Context, token string, max int) ([]volume.Volume, string, error)
	Capacity(ctx context.Context, r volume.CapacityRequest) (volume.Capacity, error)
	// Publish admits the node; volume.ErrInUse while another one is admitted.
	Publish(ctx context.Context, id, node string, readOnly bool) (*volume.Publication, error)
	// Unpublish takes the node off, all nodes if it is ""; success means that the shelf confirmed it.
	Unpublish(ctx context.Context, id, node string) error
}

// Attacher makes published volumes block devices on this node. Errors may carry a gRPC status of the initiator.
type Attacher interface {
	// Attach returns the device's path, "/dev/nbd0", when it can be used. Attached already is success.
	Attach(ctx context.Context, id string, p volume.Publication) (device string, err error)
	// Resize makes an attached device as large as its target, at least wanted bytes (0: whatever it is), and returns its size. An error
	// with the status FAILED_PRECONDITION says that it grows only when it is attached anew.
	Resize(ctx context.Context, id string, wanted int64) (int64, error)
	// Detach flushes and removes the device. Not attached is success; a device that is mounted stays. With force all of that
	// is skipped: what waits for the target fails. lost says what was, now or in an earlier call whose answer got lost; empty:
	// nothing.
	Detach(ctx context.Context, id string, force bool) (lost string, err error)
	// Device describes the volume's device; volume.ErrNotFound if it is not attached.
	Device(ctx context.Context, id string) (*volume.Attachment, error)
}

// Mounter mounts. Devices are told apart by number; errors with a method Refused() bool that returns true say that a
// retry changes nothing.
type Mounter interface {
	// FormatAndMount mounts device at target and makes a file system on it first if it is blank. One that was there is made as large
	// as the device.
	FormatAndMount(device, target, fsType string, mkfsOptions, mountOptions []string) error
	// Grow makes the file system that is mounted at path as large as its device. As large already is success.
	Grow(device, path string) error
	// Bind shows a directory, or a device node, at target, which it makes. Bound already is success.
	Bind(source, target string, readOnly bool) error
	// Unmount takes away what is mounted at path; nothing is success.
	Unmount(path string) error
	// Remove unmounts path and removes the empty directory or file itself; missing is success.
	Remove(path string) error
	// Source returns the number of the device that is mounted or bound at path, 0 if nothing is.
	Source(path string) (uint64, error)
	// References returns all paths at which the device is mounted or bound.
	References(device uint64) ([]string, error)
	// DeviceNumber returns the number of a block device's node; an error if path is none.
	DeviceNumber(path string) (uint64, error)
	// Usage returns total, used and available bytes, and inodes, of the file system at path.
	Usage(path string) (bytes, inodes [3]int64, err error)
	// DeviceSize returns the bytes of the device whose node is at path.
	DeviceSize(path string) (int64, error)
}

// Pod is the pod that a volume is published for, as the kubelet tells it.
type Pod struct {
	Namespace, Name, UID string
}

// Recorder shows people what happened to their pods and volumes. It does not block and its failures stay its own.
type Recorder interface {
	PodEvent(pod Pod, reason, message string)
	// VolumeLoss warns of data that may be lost, on the volume and on its claim. id is the volume's handle.
	VolumeLoss(id, reason, message string)
}

// noEvents is the Recorder where nobody looks.
type noEvents struct{}

// PodEvent implements Recorder.
func (noEvents) PodEvent(Pod, string, string) {}

// VolumeLoss implements Recorder.
func (noEvents) VolumeLoss(string, string, string) {}
