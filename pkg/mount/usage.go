package mount

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Usage measures the file system mounted at path. Both results are total, used, available: bytes (available to users
// that are not root) and inodes. It asks no device, so that a stalled volume still has statistics.
func (*Mounter) Usage(path string) (bytes, inodes [3]int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return bytes, inodes, fmt.Errorf("statfs %s: %w", path, err)
	}
	block := stat.Frsize
	bytes = [3]int64{int64(stat.Blocks) * block, int64(stat.Blocks-stat.Bfree) * block, int64(stat.Bavail) * block}
	inodes = [3]int64{int64(stat.Files), int64(stat.Files - stat.Ffree), int64(stat.Ffree)}
	return bytes, inodes, nil
}

// DeviceSize returns the size in bytes of the block device whose node is at path.
func (*Mounter) DeviceSize(path string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("size of device: %w", err)
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of device %s: %w", path, err)
	}
	return size, nil
}
