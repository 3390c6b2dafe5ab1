package nbd

import (
	"context"
	"errors"
	"fmt"
	"os"
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
		control:  control{},
		reserved: make(map[int]struct{}),

		reconfigure: func(attributes []byte) error { return execute(genlReconfigure, attributes) },
	}
}

// Name implements blockdev.Frontend.
func (f *Frontend) Name() string { return "nbd" }

// Probe implements blockdev.Frontend. It loads the kernel module when it is missing and that is possible.
func (f *Frontend) Probe(ctx context.Context) error {
	if f.control.Hangs() {
		return fmt.Errorf("nbd: %w: a control call has not come back: %w", blockdev.ErrUnsupported, blockdev.ErrHung)
	}
	if err := capable(); err != nil {
		return fmt.Errorf("nbd: %w: %w", blockdev.ErrUnsupported, err)
	}
	if err := blockdev.LoadModule(ctx, familyName); err != nil {
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
	release, v, err := blockdev.KernelVersion()
	if err != nil {
		return err
	}
	if v[0] < 5 || v[0] == 5 && v[1] < 14 {
		return fmt.Errorf("linux %s cannot tell whose device is whose; 5.14 or later can", release)
	}
	return blockdev.CheckRights()
}

// Create implements blockdev.Frontend.
func (f *Frontend) Create(_ context.Context, p blockdev.Params) (blockdev.Device, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
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
