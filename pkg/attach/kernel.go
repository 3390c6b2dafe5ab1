package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// kernelHas says whether the kernel's own aoe driver has the target as a device, /dev/etherd/eX.Y. It has every target that it ever heard
// of, used or not: what was dirty when it was used last may still be written.
func (h host) kernelHas(addr aoe.Addr) (bool, error) {
	_, err := os.Stat(filepath.Join(h.sys, "class/block", "etherd!"+addr.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// refuseKernel is the answer when it has: it does not know what we write, nor we what it writes. A target of ours in a session takes
// nothing from it, so only the others matter. has and err are what kernelHas said before our own frames told the driver of the target.
func refuseKernel(addr aoe.Addr, session, has bool, err error) error {
	switch {
	case session:
		return nil
	case err != nil:
		return fmt.Errorf("attach %s: %w: whether it has %s cannot be told: %w", addr, ErrKernelDriver, addr, err)
	case has:
		return fmt.Errorf("attach %s: %w as /dev/etherd/%s: unmount it here, then run \"aoe-flush %s\", or \"rmmod aoe\" if nothing here needs that driver; "+
			"where both are needed give it other interfaces (module parameter aoe_iflist)", addr, ErrKernelDriver, addr, addr)
	}
	return nil
}
