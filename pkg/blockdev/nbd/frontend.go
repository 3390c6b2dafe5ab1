package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

const (
	// maxNumber bounds the search for a free device number.
	maxNumber          = 1024
	defaultDeadTimeout = time.Hour
	defaultReplayAfter = 5 * time.Second
)

// Frontend makes and finds NBD devices. Safe for concurrent use.
type Frontend struct {
	sys     sysfs
	dev     string // "/dev"
	control control
	// reconfigure makes the kernel's call that changes a size; a test has its own.
	reconfigure func(attributes []byte) error

	mu       sync.Mutex
	reserved map[int]struct{} // numbers of devices that exist here but not yet in the kernel
}

// New returns the front end; nothing is touched before Probe.
func New() *Frontend {
	return &Frontend{
		sys:      sysfs{root: "/sys/block"},
		dev:      "/dev",
		control:  control{timeout: controlTimeout},
		reserved: make(map[int]struct{}),

		reconfigure: func(attributes []byte) error { return execute(genlReconfigure, attributes) },
	}
}

// Name implements blockdev.Frontend.
func (f *Frontend) Name() string { return "nbd" }

// Probe implements blockdev.Frontend. It loads the kernel module when it is missing and that is possible.
func (f *Frontend) Probe(ctx context.Context) error {
	if f.control.hung.Load() > 0 {
		return fmt.Errorf("nbd: %w: a control call has not come back: %w", blockdev.ErrUnsupported, blockdev.ErrHung)
	}
	if err := capable(); err != nil {
		return fmt.Errorf("nbd: %w: %w", blockdev.ErrUnsupported, err)
	}
	if err := f.loadModule(ctx); err != nil {
		return fmt.Errorf("nbd: %w: %w", blockdev.ErrUnsupported, err)
	}
	// Asking for the state of all devices takes the lock that a hung call would hold.
	err := f.control.call("probe nbd", genlStatus, nil, nil)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, blockdev.ErrUnsupported):
		return fmt.Errorf("%w (before Linux 6.12 it is there in the host's network namespace only)", err)
	}
	return fmt.Errorf("nbd: %w: %w", blockdev.ErrUnsupported, err)
}

// Features implements blockdev.Frontend.
func (f *Frontend) Features(context.Context) (blockdev.Features, error) {
	return blockdev.Features{LiveResize: true}, nil
}

// List implements blockdev.Frontend.
func (f *Frontend) List() ([]blockdev.Found, error) {
	numbers, err := f.sys.numbers()
	if err != nil {
		return nil, fmt.Errorf("list nbd devices: %w", err)
	}
	var found []blockdev.Found
	for _, number := range numbers {
		id, err := f.sys.backend(number)
		if err != nil {
			return nil, fmt.Errorf("list nbd devices: %w", err)
		}
		if !strings.HasPrefix(id, blockdev.Mark) {
			continue
		}
		maker, err := f.sys.maker(number)
		if err != nil {
			return nil, fmt.Errorf("list nbd devices: %w", err)
		}
		if maker == 0 {
			continue // disconnected, though somebody may still hold it open
		}
		found = append(found, blockdev.Found{Number: number, Path: f.path(number), ID: id, Served: alive(maker)})
	}
	return found, nil
}

// alive says whether the process is there. The attribute pid is as the host's PID namespace counts.
func alive(pid int) bool {
	return unix.Kill(pid, 0) != unix.ESRCH
}

func (f *Frontend) path(number int) string { return filepath.Join(f.dev, fmt.Sprintf("nbd%d", number)) }

// capable checks what can be told without the driver: rights, and a kernel that knows identifiers (5.14).
func capable() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	var major, minor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("kernel release %q: %w", release, err)
	}
	if major < 5 || major == 5 && minor < 14 {
		return fmt.Errorf("linux %s cannot tell whose device is whose; 5.14 or later can", release)
	}
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

func (f *Frontend) loadModule(ctx context.Context) error {
	if _, err := os.Stat("/sys/module/nbd"); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "modprobe", familyName).CombinedOutput(); err != nil {
		return fmt.Errorf("kernel module nbd is not loaded, and modprobe nbd says: %w: %.200s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Create implements blockdev.Frontend.
func (f *Frontend) Create(_ context.Context, p blockdev.Params) (blockdev.Device, error) {
	if err := validate(p); err != nil {
		return nil, err
	}
	withDefaults(&p)
	number, err := f.reserve()
	if err != nil {
		return nil, err
	}
	d, err := newDevice(f, blockdev.State{Frontend: f.Name(), Number: number, ID: p.ID, Params: p}, false)
	if err != nil {
		f.unreserve(number)
		return nil, fmt.Errorf("create nbd%d: %w", number, err)
	}
	return d, nil
}

// Recover implements blockdev.Frontend. The device keeps the parameters it was made with, but a larger size if it grew and the
// process died before it could tell anybody.
func (f *Frontend) Recover(_ context.Context, s blockdev.State) (blockdev.Device, error) {
	number, err := f.sys.find(s.ID, s.Number)
	if err != nil {
		return nil, fmt.Errorf("recover nbd%d: %w", s.Number, err)
	}
	if number < 0 {
		return nil, fmt.Errorf("recover nbd%d of %s: %w", s.Number, s.ID, os.ErrNotExist)
	}
	s.Number = number
	size, err := f.sys.bytes(number)
	if err != nil {
		return nil, fmt.Errorf("recover nbd%d: %w", number, err)
	}
	s.Params.SizeBytes = max(s.Params.SizeBytes, size)
	withDefaults(&s.Params)
	d, err := newDevice(f, s, true)
	if err != nil {
		return nil, fmt.Errorf("recover nbd%d: %w", number, err)
	}
	return d, nil
}

// Exists implements blockdev.Frontend.
func (f *Frontend) Exists(s blockdev.State) (bool, error) {
	number, err := f.sys.find(s.ID, s.Number)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return number >= 0, err
}

// Remove implements blockdev.Frontend.
func (f *Frontend) Remove(_ context.Context, s blockdev.State) error {
	number, err := f.sys.find(s.ID, s.Number)
	if err != nil {
		return fmt.Errorf("remove nbd%d: %w", s.Number, err)
	}
	if number < 0 {
		return nil
	}
	return f.disconnect(number, s.ID)
}

// disconnect ends a device; one that is not there, or is somebody else's, is left alone.
func (f *Frontend) disconnect(number int, id string) error {
	if have, err := f.sys.backend(number); err != nil || have != id {
		return err
	}
	attributes, err := disconnectAttributes(number)
	if err != nil {
		return err
	}
	err = f.control.call(fmt.Sprintf("disconnect nbd%d", number), genlDisconnect, attributes, nil)
	if errors.Is(err, syscall.EINVAL) {
		return nil // it has no configuration any more
	}
	return err
}

// reserve picks the lowest free number that no other device of ours is about to take.
func (f *Frontend) reserve() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for number := range maxNumber {
		if _, taken := f.reserved[number]; !taken && f.sys.available(number) {
			f.reserved[number] = struct{}{}
			return number, nil
		}
	}
	return 0, fmt.Errorf("nbd: all of %d numbers are in use: %w", maxNumber, blockdev.ErrNoDevice)
}

func (f *Frontend) unreserve(number int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.reserved, number)
}

func validate(p blockdev.Params) error {
	switch {
	case p.ID == "":
		return errors.New("nbd: a device needs an identifier")
	case p.LogicalBlock < 512 || p.LogicalBlock > 4096 || p.LogicalBlock&(p.LogicalBlock-1) != 0:
		return fmt.Errorf("nbd: logical block of %d bytes: must be a power of two from 512 to 4096", p.LogicalBlock)
	case p.SizeBytes == 0 || p.SizeBytes%uint64(p.LogicalBlock) != 0:
		return fmt.Errorf("nbd: size of %d bytes is not a multiple of %d", p.SizeBytes, p.LogicalBlock)
	}
	return nil
}

func withDefaults(p *blockdev.Params) {
	if p.DeadTimeout == 0 {
		p.DeadTimeout = defaultDeadTimeout
	}
	if p.ReplayAfter == 0 {
		p.ReplayAfter = defaultReplayAfter
	}
	if p.Depth == 0 {
		p.Depth = defaultDepth
	}
}
