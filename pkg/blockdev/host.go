package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// nodeTimeout is how long devtmpfs may take to show a device.
const nodeTimeout = 10 * time.Second

// KernelVersion is the kernel's release, "6.12.117-amd64", and the numbers it begins with.
func KernelVersion() (release string, version [3]int, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", version, fmt.Errorf("uname: %w", err)
	}
	release = unix.ByteSliceToString(name.Release[:])
	version, err = parseRelease(release)
	return release, version, err
}

// parseRelease reads two or three numbers; a missing third is 0.
func parseRelease(release string) (version [3]int, err error) {
	if n, err := fmt.Sscanf(release, "%d.%d.%d", &version[0], &version[1], &version[2]); n < 2 {
		return version, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return version, nil
}

// CheckRights returns why this process may not make block devices: the drivers want CAP_SYS_ADMIN in the initial user namespace.
func CheckRights() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("no CAP_SYS_ADMIN")
	}
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	if fields := strings.Fields(string(uids)); len(fields) != 3 || fields[0] != "0" || fields[2] != "4294967295" {
		return errors.New("the driver wants CAP_SYS_ADMIN in the initial user namespace, and this is another")
	}
	return nil
}

// LoadModule loads a kernel module that is not there.
func LoadModule(ctx context.Context, name string) error {
	if _, err := os.Stat(filepath.Join("/sys/module", name)); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ControlTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "modprobe", name).CombinedOutput(); err != nil {
		return fmt.Errorf("kernel module %s is not loaded, and modprobe %s says: %w: %.200s", name, name, err, bytes.TrimSpace(out))
	}
	return nil
}

// WaitForNode waits until a device node can be seen.
func WaitForNode(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("device node does not appear (is this the host's /dev?): %w", err)
		case <-tick.C:
		}
	}
}

// IsIdle reads a block device's attribute inflight, one number for reads and one for everything else: no request is out.
func IsIdle(inflight string) bool {
	for _, field := range strings.Fields(inflight) {
		if field != "0" {
			return false
		}
	}
	return true
}

// Check refuses parameters that no front end can do.
func (p *Params) Check() error {
	switch {
	case p.ID == "":
		return errors.New("a device needs an identifier")
	case p.LogicalBlock < 512 || p.LogicalBlock > 4096 || p.LogicalBlock&(p.LogicalBlock-1) != 0:
		return fmt.Errorf("logical block of %d bytes: must be a power of two from 512 to 4096", p.LogicalBlock)
	case p.SizeBytes == 0 || p.SizeBytes%uint64(p.LogicalBlock) != 0:
		return fmt.Errorf("size of %d bytes is not a multiple of %d", p.SizeBytes, p.LogicalBlock)
	}
	return nil
}
