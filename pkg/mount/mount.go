package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	mountutils "k8s.io/mount-utils"
	"k8s.io/utils/exec"
)

// RefusedError says that a device or path is in a state that this package does not touch; trying again changes
// nothing, a person has to look.
type RefusedError struct {
	Op, Object, Reason string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s %s: %s", e.Op, e.Object, e.Reason) }

// Refused tells callers that do not know this type what kind of error it is.
func (*RefusedError) Refused() bool { return true }

// Mounter mounts. It is safe for concurrent use on different paths and devices; callers
// serialize calls for one volume.
type Mounter struct {
	safe  *mountutils.SafeFormatAndMount
	exec  exec.Interface
	table func() ([]entry, error)
}

// New returns a Mounter for this process's mount namespace. It runs mount, umount, blkid, fsck and mkfs.* from PATH.
func New() *Mounter {
	runner := exec.New()
	return newMounter(mountutils.NewWithoutSystemd(""), runner, readMounts)
}

func newMounter(kernel mountutils.Interface, runner exec.Interface, table func() ([]entry, error)) *Mounter {
	return &Mounter{safe: mountutils.NewSafeFormatAndMount(kernel, runner), exec: runner, table: table}
}

// FormatAndMount mounts the file system on device at the directory target, which it makes if needed. A blank device
// gets a file system of fsType first, with mkfsOptions handed to mkfs; anything else on it is a RefusedError. A file
// system that is there already is checked and repaired as far as "fsck -a" goes, and made as large as the device. With "ro" among
// mountOptions nothing is written.
func (m *Mounter) FormatAndMount(device, target, fsType string, mkfsOptions, mountOptions []string) error {
	readOnly := slices.Contains(mountOptions, "ro")
	made, err := m.format(device, fsType, mkfsOptions, readOnly)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	// The slice is copied because mount-utils appends to what it gets.
	if err := m.safe.FormatAndMount(device, target, fsType, slices.Clone(mountOptions)); err != nil {
		return fmt.Errorf("mount %s at %s: %w", device, target, err)
	}
	if made || readOnly {
		return nil
	}
	return m.grow(device, target)
}

// Bind makes source visible at target: a directory on a directory, a device node on a file, which it makes. Bound already
// is success. A target that shows something else is a RefusedError.
func (m *Mounter) Bind(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	done, err := m.bound(source, info, target, readOnly)
	if err != nil || done {
		return err
	}
	if err := makeTarget(target, info.IsDir()); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	options := []string{"bind"}
	if readOnly {
		options = append(options, "ro")
	}
	if err := m.safe.Mount(source, target, "", options); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	return nil
}

// bound says whether target shows source already. A bind that was cut off before it became read-only is
// taken away, so that the caller makes it anew.
func (m *Mounter) bound(source string, info fs.FileInfo, target string, readOnly bool) (bool, error) {
	there, ok, err := m.at(target)
	if err != nil || !ok {
		return false, err
	}
	wanted := deviceOf(info)
	if !info.IsDir() {
		wanted = rdevOf(info)
	}
	if there.device() != wanted {
		return false, &RefusedError{Op: "bind", Object: target, Reason: fmt.Sprintf("already shows %s, not %s", there.source, source)}
	}
	if readOnly && !there.readOnly {
		return false, m.Unmount(target)
	}
	return true, nil
}

// Unmount takes away all that is mounted at path, however often. Nothing mounted, or no such path, is success.
func (m *Mounter) Unmount(path string) error {
	const most = 64 // of mounts on top of each other
	for range most {
		_, mounted, err := m.at(path)
		if err != nil || !mounted {
			return err
		}
		if err := m.safe.Unmount(path); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: still mounted after %d times", path, most)
}

// Remove unmounts path and removes the empty directory or file that it was. Missing is success; a directory with
// something in it is an error and stays.
func (m *Mounter) Remove(path string) error {
	if err := m.Unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what was mounted on: %w", err)
	}
	return nil
}

// makeTarget makes the directory or file that a bind mount covers. The kubelet makes the parent of a target only.
func makeTarget(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	file, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return file.Close()
}
