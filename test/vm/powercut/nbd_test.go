//go:build vm

package powercut

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The ioctls of Linux's NBD client.
const (
	nbdSetSock       = 0xab00
	nbdSetBlockSize  = 0xab01
	nbdDoIt          = 0xab03
	nbdClearSock     = 0xab04
	nbdSetSizeBlocks = 0xab07
	nbdSetFlags      = 0xab0a

	nbdHasFlags  = 1
	nbdSendFlush = 1 << 2
	nbdSendFUA   = 1 << 3
)

// plug is a disk's connection to this kernel.
type plug struct {
	device *os.File
	ended  chan error
}

// connect makes the disk the kernel's block device at path.
func (d *disk) connect(path string) (*plug, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[0]) // the kernel has its own reference by then
	ours := os.NewFile(uintptr(pair[1]), "disk")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, err
	}
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	for _, call := range []struct {
		request uint
		value   int
	}{
		{nbdSetBlockSize, blockSize}, {nbdSetSizeBlocks, int(d.size / blockSize)}, {nbdSetSock, pair[0]},
		{nbdSetFlags, nbdHasFlags | nbdSendFlush | nbdSendFUA},
	} {
		if err := unix.IoctlSetInt(int(device.Fd()), call.request, call.value); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: ioctl %#x: %w", path, call.request, err), device.Close(), conn.Close())
		}
	}
	go d.serve(conn)
	p := &plug{device: device, ended: make(chan error, 1)}
	go func() {
		runtime.LockOSThread() // never unlocked: it waits in the kernel as long as the disk is connected, which a signal would end
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
			p.ended <- err
			return
		}
		p.ended <- unix.IoctlSetInt(int(device.Fd()), nbdDoIt, 0)
	}()
	return p, nil
}

// pull waits until the kernel has noticed that the disk is gone, and has it fail what it still waits for.
func (p *plug) pull() error {
	<-p.ended // with an error, since nobody asked for the end
	err := unix.IoctlSetInt(int(p.device.Fd()), nbdClearSock, 0)
	return errors.Join(err, p.device.Close())
}
