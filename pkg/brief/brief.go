// Package brief makes system calls of which the Go runtime is told nothing.
//
// Around every other one the runtime books that the thread may stay away, and its monitor, which then looks every 20 µs, gives what the
// thread ran with to another one, which has to be woken, and woken again to give it back. A loop that makes a call every few
// microseconds and is the only one with work pays for that with every request: 4k reads at depth 1 over ublk took 1.5 times as long. In
// exchange such a call holds up the garbage collector until it ends or is interrupted by the collector's signal: it must not
// wait for a disk (RWF_NOWAIT does not promise that: what is missing is read ahead), and for anything else only briefly. A frame's
// memory is such a thing when it is short; that the kernel looks for it without waiting for a disk is why both processes are I/O flushers.
package brief

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wait is how long a loop that is in the midst of work may wait in a call of this package for more, in milliseconds.
const Wait = 5

// EpollWait is epoll_wait(2) into events, which must not be empty, for at most milliseconds; EINTR as the kernel gives it.
func EpollWait(epoll int, events []unix.EpollEvent, milliseconds int) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(milliseconds), 0, 0)
	return int(n), errno
}

// Poll is poll(2) of fds, which must not be empty, for at most milliseconds; EINTR as the kernel gives it.
func Poll(fds []unix.PollFd, milliseconds int) (int, syscall.Errno) {
	limit := unix.NsecToTimespec(int64(milliseconds) * 1e6)
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	return int(n), errno
}

// Pread is pread(2) into p, which must not be empty, of what needs no disk.
func Pread(fd int, p []byte, off int64) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Pwrite is pwrite(2) of p, which must not be empty, to what needs no disk.
func Pwrite(fd int, p []byte, off int64) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
