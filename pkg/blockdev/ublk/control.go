package ublk

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// control makes control commands: each on a ring of its own, since the kernel may take its time for one of them.
type control struct {
	path string // "/dev/ublk-control"
	// all guards the commands that take the driver's lock: adding and deleting. Those of one device have a watchdog each.
	all blockdev.Watchdog
	// look guards those that only read.
	look blockdev.Watchdog
}

// command is one control command; buffer is what its address points to, or nil.
type command struct {
	number uint32
	device uint32
	data   uint64
	buffer []byte
}

// run makes the command under a watchdog. late gets what comes after the watchdog gave up.
func (c *control) run(w *blockdev.Watchdog, what string, cmd command, late func(error)) error {
	err := w.Run(what, func() error { return c.execute(cmd) }, late)
	if err != nil && !errors.Is(err, blockdev.ErrHung) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// execute makes the command and waits for it.
func (c *control) execute(cmd command) (err error) {
	fd, err := unix.Open(c.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", c.path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	r, err := uring.New(2, uring.SetupSQE128)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	e := r.Next()
	e.Opcode, e.FD, e.Off = uring.OpURingCmd, int32(fd), uint64(cmd.number)
	*(*controlCommand)(unsafe.Pointer(&e.Command)) = controlCommand{
		device: cmd.device, queue: anyQueue, length: uint16(len(cmd.buffer)),
		address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(cmd.buffer)))), data: cmd.data,
	}
	var pinned runtime.Pinner // the kernel has the buffer's address until the command is done
	if cmd.buffer != nil {
		pinned.Pin(unsafe.SliceData(cmd.buffer))
	}
	defer pinned.Unpin()
	if err := r.Submit(1); err != nil {
		return err
	}
	done, _ := r.Take() // submit waited for it
	if done.Result < 0 {
		return syscall.Errno(-done.Result)
	}
	return nil
}

// wake has a completion with this user data appear in another ring, from any thread.
func wake(ringFD int, userData uint64) (err error) {
	r, err := uring.New(2, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	e := r.Next()
	e.Opcode, e.FD, e.Off = uring.OpMsgRing, int32(ringFD), userData
	if err := r.Submit(1); err != nil {
		return err
	}
	if done, _ := r.Take(); done.Result < 0 {
		return fmt.Errorf("wake queue: %w", syscall.Errno(-done.Result))
	}
	return nil
}

// features asks the driver what it can do (Linux 6.5).
func (c *control) features() (uint64, error) {
	b := make([]byte, 8)
	err := c.run(&c.look, "ask ublk for its features", command{number: cmdGetFeatures, buffer: b}, nil)
	return binary.NativeEndian.Uint64(b), err
}

// info describes a device; ENODEV when there is none.
func (c *control) info(number int) (deviceInfo, error) {
	var info deviceInfo
	b := make([]byte, unsafe.Sizeof(info))
	err := c.run(&c.look, fmt.Sprintf("describe ublk%d", number), command{number: cmdGetDevInfo, device: uint32(number), buffer: b}, nil)
	if err != nil {
		return info, err
	}
	return *(*deviceInfo)(unsafe.Pointer(&b[0])), nil
}

// add makes the character device; EEXIST when the number is taken.
func (c *control) add(number, depth int, mark uint64, late func(error)) error {
	info := deviceInfo{
		queues: 1, depth: uint16(depth), maxIOBytes: maxRequestBytes, device: uint32(number),
		flags: wantedFlags, serverFlags: mark,
	}
	b := make([]byte, unsafe.Sizeof(info))
	*(*deviceInfo)(unsafe.Pointer(&b[0])) = info
	err := c.run(&c.all, fmt.Sprintf("add ublk%d", number), command{number: cmdAddDev, device: uint32(number), buffer: b}, late)
	if err != nil {
		return err
	}
	if got := (*deviceInfo)(unsafe.Pointer(&b[0])).flags; got&wantedFlags != wantedFlags {
		return errors.Join(fmt.Errorf("add ublk%d: the kernel granted flags %#x of %#x: %w", number, got, wantedFlags,
			blockdev.ErrUnsupported), c.delete(number))
	}
	return nil
}

// delete removes the device; absent is success. The kernel frees its number when the last who holds it open lets go.
func (c *control) delete(number int) error {
	err := c.run(&c.all, fmt.Sprintf("delete ublk%d", number), command{number: cmdDelDevAsync, device: uint32(number)}, nil)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// markMagic is the upper half of the word that the kernel keeps for us with each device; the rest is of the hash of its ID.
const (
	markMagic = 0xa0ec51 << 40
	markMask  = 0xffffff << 40
)

// markOf is the word for a device with this ID.
func markOf(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return markMagic | binary.BigEndian.Uint64(sum[:])&^uint64(markMask)
}

// sysfs reads what the kernel shows of its devices.
type sysfs struct{ root string } // "/sys"

// numbers lists all ublk devices, whosoever they are.
func (s sysfs) numbers() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "class/ublk-char"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no driver, no devices
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, entry := range entries {
		if text, ok := strings.CutPrefix(entry.Name(), "ublkc"); ok {
			if number, err := strconv.Atoi(text); err == nil {
				numbers = append(numbers, number)
			}
		}
	}
	return numbers, nil
}

// block is the path of an attribute of the block device.
func (s sysfs) block(number int, elem ...string) string {
	return filepath.Join(append([]string{s.root, "block", fmt.Sprintf("ublkb%d", number)}, elem...)...)
}

// bytes is the block device's size; 0 when there is none.
func (s sysfs) bytes(number int) (uint64, error) {
	b, err := os.ReadFile(s.block(number, "size"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 55)
	return sectors * 512, err
}

// idle says whether no request is out.
func (s sysfs) idle(number int) (bool, error) {
	b, err := os.ReadFile(s.block(number, "inflight"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return err == nil && blockdev.IsIdle(string(b)), err
}

// tune sets the queue up. No scheduler: the target has one, and requests are merged before they get here. The kernel notices
// at once that its server died only while at least one command waits to be filled, so one tag more than requests exists; should
// somebody choose a scheduler after all, the requests' timer finds out.
func (s sysfs) tune(number, requests int) error {
	for _, a := range [][2]string{{"scheduler", "none"}, {"nr_requests", strconv.Itoa(requests)}, {"io_timeout", "1000"}} {
		if err := os.WriteFile(s.block(number, "queue", a[0]), []byte(a[1]), 0); err != nil {
			return err
		}
	}
	return nil
}
