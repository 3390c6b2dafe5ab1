package attach

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is where the kernel tells who uses what.
type host struct{ sys, proc string } // "/sys", "/proc"

var thisHost = host{"/sys", "/proc"}

// initialPIDNamespace is the one that sees every process (PROC_PID_INIT_INO of include/linux/proc_ns.h).
const initialPIDNamespace = "pid:[4026531836]"

// holder names one who uses the block device or one of its partitions; "" if certainly nobody does. An error says why that
// cannot be told. The device is not opened: nobody may be there to answer what an open would read.
func (h host) holder(device string) (string, error) {
	if ns, err := os.Readlink(filepath.Join(h.proc, "self/ns/pid")); err != nil || ns != initialPIDNamespace {
		return "", errors.New("processes of the host cannot be seen from here (hostPID, or run it on the host itself)")
	}
	parts, err := h.parts(filepath.Base(device))
	if err != nil || len(parts) == 0 {
		return "", err
	}
	for _, look := range []func([]part) (string, error){h.kernelHolder, h.loopHolder, h.swapHolder, h.processHolder} {
		if who, err := look(parts); err != nil || who != "" {
			return who, err
		}
	}
	return "", nil
}

// part is a disk or a partition of it.
type part struct {
	name   string // "nbd3p1"
	number string // "43:97"
}

// parts are the disk and its partitions; none if there is no such disk.
func (h host) parts(disk string) ([]part, error) {
	dir := filepath.Join(h.sys, "class/block", disk)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := []string{"."}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), disk) {
			names = append(names, entry.Name())
		}
	}
	var parts []part
	for _, name := range names {
		number, err := os.ReadFile(filepath.Join(dir, name, "dev"))
		if err != nil {
			return nil, err
		}
		if name == "." {
			name = disk
		}
		parts = append(parts, part{name, strings.TrimSpace(string(number))})
	}
	return parts, nil
}

// kernelHolder looks for what the kernel itself has on top: device mapper and RAID, file systems also of mounts that no process
// sees any more, and requests under way.
func (h host) kernelHolder(parts []part) (string, error) {
	for i, p := range parts {
		dir := filepath.Join(h.sys, "class/block", parts[0].name)
		if i > 0 {
			dir = filepath.Join(dir, p.name)
		}
		holders, err := os.ReadDir(filepath.Join(dir, "holders"))
		if err != nil {
			return "", err
		}
		if len(holders) > 0 {
			return "block device " + holders[0].Name(), nil
		}
		mounted, err := filepath.Glob(filepath.Join(h.sys, "fs", "*", p.name))
		if err != nil {
			return "", err
		}
		if len(mounted) > 0 {
			return "a mounted file system (" + mounted[0] + ")", nil
		}
		inflight, err := os.ReadFile(filepath.Join(dir, "inflight"))
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(strings.Fields(string(inflight)), func(n string) bool { return n != "0" }) {
			return "requests that nobody has answered", nil
		}
	}
	return "", nil
}

// loopHolder looks for loop devices over it; the kubelet makes one to hold a raw block volume.
func (h host) loopHolder(parts []part) (string, error) {
	loops, err := filepath.Glob(filepath.Join(h.sys, "class/block/loop*/loop/backing_file"))
	if err != nil {
		return "", err
	}
	for _, loop := range loops {
		file, err := os.ReadFile(loop)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since
		}
		if err != nil {
			return "", err
		}
		for _, p := range parts {
			if filepath.Base(strings.TrimSpace(string(file))) == p.name {
				return "block device " + filepath.Base(filepath.Dir(filepath.Dir(loop))), nil
			}
		}
	}
	return "", nil
}

func (h host) swapHolder(parts []part) (string, error) {
	swaps, err := os.ReadFile(filepath.Join(h.proc, "swaps"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // a kernel without swapping
	}
	for _, p := range parts {
		if bytes.Contains(swaps, []byte("/"+p.name+" ")) || bytes.Contains(swaps, []byte("/"+p.name+"\t")) {
			return "swap space", nil
		}
	}
	return "", err
}

// processHolder looks at every process: what it has mounted, open and mapped.
func (h host) processHolder(parts []part) (string, error) {
	entries, err := os.ReadDir(h.proc)
	if err != nil {
		return "", err
	}
	seen := make(map[string]bool) // mount namespaces
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		who, err := h.heldBy(filepath.Join(h.proc, entry.Name()), parts, seen)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // the process has ended, or is a zombie
		}
		if err != nil {
			return "", err
		}
		if who != "" {
			return fmt.Sprintf("process %d (%s)", pid, who), nil
		}
	}
	return "", nil
}

func (h host) heldBy(process string, parts []part, seen map[string]bool) (string, error) {
	maps, err := os.ReadFile(filepath.Join(process, "maps"))
	if err != nil {
		return "", err
	}
	for _, p := range parts {
		if bytes.Contains(maps, []byte("/dev/"+p.name+"\n")) {
			return "has /dev/" + p.name + " mapped", nil
		}
	}
	if who, err := openedBy(filepath.Join(process, "fd"), parts); err != nil || who != "" {
		return who, err
	}
	namespace, err := os.Readlink(filepath.Join(process, "ns/mnt"))
	if err != nil || seen[namespace] {
		return "", err
	}
	mounts, err := os.ReadFile(filepath.Join(process, "mountinfo"))
	if err != nil {
		return "", err
	}
	seen[namespace] = true
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line) // proc(5): ID, parent, device, root, mount point, …
		if len(fields) < 5 {
			continue
		}
		for _, p := range parts {
			if fields[2] == p.number || fields[3] == "/"+p.name { // mounted, or its node bound elsewhere
				return "sees it at " + fields[4], nil
			}
		}
	}
	return "", nil
}

// openedBy looks through a process's descriptors. It asks no file server about them.
func openedBy(dir string, parts []part) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(dir, entry.Name()), unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return "", err
		}
		number := fmt.Sprintf("%d:%d", st.Rdev_major, st.Rdev_minor)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK && slices.ContainsFunc(parts, func(p part) bool { return p.number == number }) {
			return "has it open", nil
		}
	}
	return "", nil
}
