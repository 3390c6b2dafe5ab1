package mount

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// entry is a line of mountinfo as far as it matters here.
type entry struct {
	path     string
	number   uint64 // of the file system's device
	source   string
	readOnly bool
	// node is the number of the device node that was bound at path; 0 if a file system is mounted there.
	node uint64
}

// device is the number of the block device that path stands for.
func (e entry) device() uint64 {
	if e.node != 0 {
		return e.node
	}
	return e.number
}

// readMounts lists the mounts of this process's namespace, in the order in which they were made.
func readMounts() ([]entry, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	entries := make([]entry, 0, len(infos))
	for _, info := range infos {
		e := entry{
			path:     info.Mountpoint,
			number:   unix.Mkdev(uint32(info.Major), uint32(info.Minor)),
			source:   info.Source,
			readOnly: slices.Contains(strings.Split(info.Options, ","), "ro"),
		}
		// Device nodes live on these two only, and a look at neither can hang.
		if info.Root != "/" && (info.FSType == "devtmpfs" || info.FSType == "tmpfs") {
			e.node, e.source = nodeAt(info.Mountpoint, e.source, info.Root)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// nodeAt returns the number and the name of the block device whose node is bound at path; 0 and source if it is none.
func nodeAt(path, source, root string) (uint64, string) {
	info, err := os.Stat(path)
	if err != nil || info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
		return 0, source
	}
	return rdevOf(info), filepath.Base(root)
}

// at returns what is mounted at path, the topmost if there are several.
func (m *Mounter) at(path string) (entry, bool, error) {
	entries, err := m.table()
	if err != nil {
		return entry{}, false, err
	}
	path = resolve(path)
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].path == path {
			return entries[i], true, nil
		}
	}
	return entry{}, false, nil
}

// Source returns the number of the block device that is mounted, or whose node is bound, at path; 0 if nothing is.
func (m *Mounter) Source(path string) (uint64, error) {
	there, ok, err := m.at(path)
	if err != nil || !ok {
		return 0, err
	}
	return there.device(), nil
}

// References returns every path at which the block device with this number is mounted or its node bound.
func (m *Mounter) References(device uint64) ([]string, error) {
	entries, err := m.table()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if e.device() == device {
			paths = append(paths, e.path)
		}
	}
	return paths, nil
}

// DeviceNumber returns the number of the block device whose node is at path.
func (*Mounter) DeviceNumber(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at device: %w", err)
	}
	if info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
		return 0, fmt.Errorf("look at device %s: not a block device", path)
	}
	return rdevOf(info), nil
}

// resolve follows the links in the parent of path, as the kernel did when it wrote the table. The last element is left
// alone: a look at a mount whose device is dead may fail, and no caller mounts on a link.
func resolve(path string) string {
	path = filepath.Clean(path)
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(parent, filepath.Base(path))
}

func deviceOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Dev }

func rdevOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Rdev }
