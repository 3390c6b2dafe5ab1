package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// maxNumber bounds the search for a free device number.
const maxNumber = 4096

// Frontend makes and finds ublk devices. Safe for concurrent use.
type Frontend struct {
	sys     sysfs
	dev     string // "/dev"
	control control

	mu       sync.Mutex
	reserved map[int]struct{} // numbers of devices that exist here but not yet in the kernel
}

// New returns the front end; nothing is touched before Probe.
func New() *Frontend {
	return &Frontend{
		sys: sysfs{root: "/sys"}, dev: "/dev", control: control{path: "/dev/ublk-control"}, reserved: make(map[int]struct{}),
	}
}

// Name implements blockdev.Frontend.
func (f *Frontend) Name() string { return "ublk" }

// Probe implements blockdev.Frontend. It loads the kernel module when it is missing and that is possible.
func (f *Frontend) Probe(ctx context.Context) error {
	if err := f.probe(ctx); err != nil {
		return fmt.Errorf("ublk: %w: %w", blockdev.ErrUnsupported, err)
	}
	return nil
}

func (f *Frontend) probe(ctx context.Context) error {
	if f.control.all.Hangs() || f.control.look.Hangs() {
		return fmt.Errorf("a control command has not come back: %w", blockdev.ErrHung)
	}
	if err := blockdev.CheckRights(); err != nil {
		return err
	}
	release, version, err := blockdev.KernelVersion()
	if err != nil {
		return err
	}
	if why := knownBad(version, inPIDNamespace()); why != "" {
		return fmt.Errorf("linux %s: %s", release, why)
	}
	if err := blockdev.LoadModule(ctx, "ublk_drv"); err != nil {
		return err
	}
	if _, err := os.Stat(f.control.path); err != nil {
		return fmt.Errorf("%w (is this the host's /dev?)", err)
	}
	features, err := f.control.features()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS):
		return fmt.Errorf("io_uring is not allowed here (sysctl kernel.io_uring_disabled%s, or the container's seccomp profile): %w", disabled(), err)
	case err != nil:
		return err
	case features&wantedFlags != wantedFlags:
		return fmt.Errorf("the driver offers features %#x, of %#x that are needed", features, uint64(wantedFlags))
	}
	return nil
}

// disabled is the value of the sysctl, for people.
func disabled() string {
	b, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	if err != nil {
		return ""
	}
	return " is " + strings.TrimSpace(string(b))
}

// inPIDNamespace says whether this process is in another PID namespace than the host's first process.
func inPIDNamespace() bool {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO of include/linux/proc_ns.h
	name, err := os.Readlink("/proc/self/ns/pid")
	return err != nil || name != initial
}

// knownBad says why recovery cannot be trusted on a kernel; empty if it can. The fixes are in the changelogs of the stable
// kernels: 6.12.24 and 6.12.114 brought those of aborting and cancelling, 6.18.8 that of process numbers.
func knownBad(v [3]int, pidNamespace bool) string {
	before := func(w [3]int) bool { return slices.Compare(v[:], w[:]) < 0 }
	within := func(from, to [3]int) bool { return !before(from) && before(to) }
	switch {
	case before([3]int{6, 12, 0}):
		return "before 6.12 a server's death loses requests"
	case before([3]int{6, 12, 114}), within([3]int{6, 13, 0}, [3]int{6, 15, 0}):
		return "cancelling commands races with completing them (fixed in 6.12.114 and 6.15)"
	case within([3]int{6, 18, 4}, [3]int{6, 18, 6}):
		return "adding a device crashes the kernel (6.18.4 and 6.18.5)"
	case pidNamespace && within([3]int{6, 16, 1}, [3]int{6, 18, 8}):
		return "the driver refuses servers in a PID namespace (6.16.1 to 6.18.7): use the host's"
	}
	return ""
}

// Features implements blockdev.Frontend.
func (f *Frontend) Features(context.Context) (blockdev.Features, error) {
	features, err := f.control.features()
	return blockdev.Features{LiveResize: features&flagUpdateSize != 0}, err
}

// Create implements blockdev.Frontend.
func (f *Frontend) Create(_ context.Context, p blockdev.Params) (blockdev.Device, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("ublk: %w", err)
	}
	if p.Depth == 0 {
		p.Depth = defaultDepth
	}
	if p.Depth < 1 || p.Depth > maxDepth {
		return nil, fmt.Errorf("ublk: depth %d: must be 1 to %d", p.Depth, maxDepth)
	}
	number, err := f.reserve()
	if err != nil {
		return nil, err
	}
	d, err := newDevice(f, blockdev.State{Frontend: f.Name(), Number: number, ID: p.ID, Params: p}, false)
	if err != nil {
		f.unreserve(number)
		return nil, fmt.Errorf("create ublk%d: %w", number, err)
	}
	return d, nil
}

// Recover implements blockdev.Frontend. The device keeps the parameters it was made with, and a size that the kernel was told later.
func (f *Frontend) Recover(_ context.Context, s blockdev.State) (blockdev.Device, error) {
	number, _, err := f.find(s)
	if err != nil {
		return nil, fmt.Errorf("recover ublk%d: %w", s.Number, err)
	}
	if number < 0 {
		return nil, fmt.Errorf("recover ublk%d of %s: %w", s.Number, s.ID, os.ErrNotExist)
	}
	s.Number = number
	bytes, err := f.sys.bytes(number)
	if err != nil {
		return nil, fmt.Errorf("recover ublk%d: %w", number, err)
	}
	s.Params.SizeBytes = max(s.Params.SizeBytes, bytes)
	d, err := newDevice(f, s, true)
	if err != nil {
		return nil, fmt.Errorf("recover ublk%d: %w", number, err)
	}
	return d, nil
}

// Exists implements blockdev.Frontend. A device that was stopped and not deleted, by a server that died between the two, has no block device any
// more and cannot get it back.
func (f *Frontend) Exists(s blockdev.State) (bool, error) {
	number, state, err := f.find(s)
	return number >= 0 && state != stateDead, err
}

// Remove implements blockdev.Frontend.
func (f *Frontend) Remove(_ context.Context, s blockdev.State) error {
	number, _, err := f.find(s)
	if err != nil || number < 0 {
		return err
	}
	return f.end(new(blockdev.Watchdog), number)
}

// end stops a device and deletes it; absent is success.
func (f *Frontend) end(w *blockdev.Watchdog, number int) error {
	what := fmt.Sprintf("stop ublk%d", number)
	err := f.control.run(w, what, command{number: cmdStopDev, device: uint32(number)}, nil)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.control.delete(number)
}

// List implements blockdev.Frontend. The kernel has no room for an ID, only for a mark.
func (f *Frontend) List() ([]blockdev.Found, error) {
	numbers, err := f.sys.numbers()
	if err != nil {
		return nil, fmt.Errorf("list ublk devices: %w", err)
	}
	var found []blockdev.Found
	for _, number := range numbers {
		info, err := f.control.info(number)
		if errors.Is(err, syscall.ENODEV) {
			continue // gone since
		}
		if err != nil {
			return nil, fmt.Errorf("list ublk devices: %w", err)
		}
		if info.serverFlags&markMask != markMagic {
			continue
		}
		served := info.state == stateLive && unix.Kill(int(info.server), 0) != unix.ESRCH
		found = append(found, blockdev.Found{Number: number, Path: f.path(number), Served: served})
	}
	return found, nil
}

// find returns the number and state of the device with this ID, looking at the likely one first; −1 when there is none.
func (f *Frontend) find(s blockdev.State) (number int, state uint16, err error) {
	numbers, err := f.sys.numbers()
	if err != nil {
		return -1, 0, err
	}
	if i := slices.Index(numbers, s.Number); i > 0 {
		numbers[0], numbers[i] = numbers[i], numbers[0]
	}
	for _, number := range numbers {
		info, err := f.control.info(number)
		if errors.Is(err, syscall.ENODEV) {
			continue
		}
		if err != nil {
			return -1, 0, err
		}
		if info.serverFlags == markOf(s.ID) {
			return number, info.state, nil
		}
	}
	return -1, 0, nil
}

func (f *Frontend) path(number int) string {
	return filepath.Join(f.dev, fmt.Sprintf("ublkb%d", number))
}

func (f *Frontend) charPath(number int) string {
	return filepath.Join(f.dev, fmt.Sprintf("ublkc%d", number))
}

// reserve picks the lowest number that no device has or is about to take.
func (f *Frontend) reserve() (int, error) {
	taken, err := f.sys.numbers()
	if err != nil {
		return 0, fmt.Errorf("ublk: look for a free number: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for number := range maxNumber {
		if _, reserved := f.reserved[number]; !reserved && !slices.Contains(taken, number) {
			f.reserved[number] = struct{}{}
			return number, nil
		}
	}
	return 0, fmt.Errorf("ublk: all of %d numbers are in use: %w", maxNumber, blockdev.ErrNoDevice)
}

func (f *Frontend) unreserve(number int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.reserved, number)
}
