package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// marker is in the last sector of a device while mkfs works on it, so that an mkfs that was killed half-way is told from data
// of someone else. It travels with the volume: another node understands it as well. Neither mke2fs nor mkfs.xfs needs
// that sector for its own structures.
var marker = []byte("aoe-csi: mkfs has begun on this device and has not ended\n")

const (
	sectorSize = 512
	// headSize bytes at each end are read whole before mkfs; they cover the structures of the file systems,
	// partition tables, RAID and LVM that blkid may not know.
	headSize = 1 << 20
	// samples of sampleSize bytes between the ends catch data that has nothing at the ends.
	samples    = 64
	sampleSize = 4096
)

// content is what was found on a device without a file system.
type content int

const (
	contentBlank content = iota
	contentInterrupted
	contentData
)

// format makes a file system on device if it is blank or was interrupted while it got one, and does nothing if it has one of
// fsType already; made says which. mkfs runs to its end also when the caller is gone: a killed one would have to begin anew.
func (m *Mounter) format(device, fsType string, options []string, readOnly bool) (made bool, err error) {
	existing, err := m.safe.GetDiskFormat(device)
	if err != nil {
		return false, fmt.Errorf("look for a file system on %s: %w", device, err)
	}
	refuse := func(reason string, args ...any) (bool, error) {
		return false, &RefusedError{Op: "format", Object: device, Reason: fmt.Sprintf(reason, args...)}
	}
	switch {
	case existing == fsType && readOnly:
		return false, nil
	case existing == fsType:
		half, err := halfMade(device, fsType)
		if err != nil || !half {
			return false, err
		}
	case existing != "":
		return refuse("holds %s, not %s as asked; it is left as it is", existing, fsType)
	}
	if readOnly {
		return refuse("has no file system and is read-only")
	}
	if existing == "" {
		found, err := inspect(device)
		if err != nil {
			return false, fmt.Errorf("check that %s is blank: %w", device, err)
		}
		if found == contentData {
			return refuse("has no file system that blkid knows, but is not blank; it is left as it is (wipe it if its data is not needed)")
		}
	}
	return true, m.mkfs(device, fsType, options)
}

// mkfs runs mkfs between setting and clearing the marker.
func (m *Mounter) mkfs(device, fsType string, options []string) error {
	if err := setMarker(device); err != nil {
		return fmt.Errorf("mark %s before mkfs: %w", device, err)
	}
	args := append(mkfsArguments(fsType), options...)
	klog.InfoS("Making a file system", "device", device, "fsType", fsType, "options", args)
	output, err := m.exec.Command("mkfs."+fsType, append(args, device)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.%s %s: %w: %s", fsType, device, err, strings.TrimSpace(string(output)))
	}
	if err := clearMarker(device); err != nil {
		return fmt.Errorf("unmark %s after mkfs: %w", device, err)
	}
	return nil
}

// mkfsArguments are ours, before the user's. -K keeps mkfs from discarding first: the volume reads zeroes anyway, and the
// marker has to survive.
func mkfsArguments(fsType string) []string {
	switch fsType {
	case "ext4", "ext3", "ext2":
		return []string{"-F", "-q", "-K", "-m0"} // -m0: no blocks are kept for root on a data volume
	case "xfs":
		return []string{"-f", "-q", "-K"}
	}
	return nil
}

// halfMade says whether an mkfs that was killed left what blkid takes for a file system of fsType on device. It also clears a
// marker that was left because the end came between mkfs and clearing it.
func halfMade(device, fsType string) (bool, error) {
	const (
		xfsInProgress = 126         // offset of sb_inprogress: the kernel never mounts a file system that has it set
		ext4MountTime = 1024 + 0x2c // offset of s_mtime: zero until the first mount
	)
	file, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer file.Close()
	super := make([]byte, 2048)
	if _, err := file.ReadAt(super, 0); err != nil {
		return false, fmt.Errorf("read superblock of %s: %w", device, err)
	}
	switch fsType {
	case "xfs":
		return string(super[:4]) == "XFSB" && super[xfsInProgress] == 1, nil
	case "ext4":
		if binary.LittleEndian.Uint32(super[ext4MountTime:]) == 0 {
			return false, clearMarker(device)
		}
	}
	return false, nil
}

// inspect reads both ends of a device and samples in between. Any read error is returned: a device that cannot be read is
// not blank (blkid calls it unformatted).
func inspect(device string) (content, error) {
	file, err := os.Open(device)
	if err != nil {
		return contentData, err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return contentData, err
	}
	if size < sectorSize {
		return contentData, fmt.Errorf("device has %d bytes", size)
	}
	tail := make([]byte, sectorSize)
	if _, err := file.ReadAt(tail, size-sectorSize); err != nil {
		return contentData, err
	}
	if bytes.HasPrefix(tail, marker) {
		return contentInterrupted, nil
	}
	blank, err := blankAt(file, 0, min(headSize, size))
	if err == nil && blank {
		blank, err = blankAt(file, max(0, size-headSize), min(headSize, size))
	}
	for i := int64(1); i < samples && err == nil && blank; i++ {
		offset := size / samples * i / sampleSize * sampleSize
		blank, err = blankAt(file, offset, min(sampleSize, size-offset))
	}
	if err != nil || !blank {
		return contentData, err
	}
	return contentBlank, nil
}

// blankAt says whether length bytes at offset are all zero.
func blankAt(file *os.File, offset, length int64) (bool, error) {
	buffer := make([]byte, length)
	if _, err := file.ReadAt(buffer, offset); err != nil {
		return false, err
	}
	return len(bytes.TrimLeft(buffer, "\x00")) == 0, nil
}

func setMarker(device string) error {
	return withTail(device, func(file *os.File, offset int64) error {
		sector := make([]byte, sectorSize)
		copy(sector, marker)
		_, err := file.WriteAt(sector, offset)
		return err
	})
}

// clearMarker zeroes the last sector if it holds the marker.
func clearMarker(device string) error {
	return withTail(device, func(file *os.File, offset int64) error {
		sector := make([]byte, sectorSize)
		if _, err := file.ReadAt(sector, offset); err != nil {
			return err
		}
		if !bytes.HasPrefix(sector, marker) {
			return nil
		}
		_, err := file.WriteAt(make([]byte, sectorSize), offset)
		return err
	})
}

// withTail runs change with the offset of the device's last sector and makes what it wrote durable. The device is opened
// exclusively: one that is mounted or belongs to something else is busy.
func withTail(device string, change func(file *os.File, offset int64) error) error {
	file, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		err = change(file, size-sectorSize)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
