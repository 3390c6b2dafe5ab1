package ublk

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// withoutRights calls f while the calling thread has no CAP_SYS_ADMIN in effect.
//
// The kernel does not look for partitions on a device whose commands were given to it by such a thread (ublk_ctrl_start_dev). That is what
// we want: START_DEV would wait for the read of the partition table, and if this process is killed meanwhile, it cannot end before that read
// does, the read waits for a recovery, and the recovery waits for START_DEV.
func withoutRights(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	fewer := all
	fewer[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if err := unix.Capset(&header, &fewer[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	err = f()
	if back := unix.Capset(&header, &all[0]); back != nil {
		err = errors.Join(err, fmt.Errorf("capset: %w", back))
	}
	return err
}
