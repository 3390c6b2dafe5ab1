package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// hungPatience is how long Stop waits for a command that hangs.
const hungPatience = 3 * time.Second

// device is one /dev/ublkbN.
type device struct {
	f       *Frontend
	q       *queue
	recover bool
	own     blockdev.Watchdog // for commands about this device only

	mu      sync.Mutex // serialises control calls and guards the fields below
	state   blockdev.State
	added   bool // the kernel has the character device, and it is ours to delete
	started bool
	stopped bool
	closed  bool
}

func newDevice(f *Frontend, s blockdev.State, recovering bool) (*device, error) {
	q, err := newQueue(s.Params.Depth)
	if err != nil {
		return nil, err
	}
	return &device{f: f, q: q, recover: recovering, added: recovering, state: s}, nil
}

// Path implements blockdev.Device.
func (d *device) Path() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.f.path(d.state.Number)
}

// State implements blockdev.Device.
func (d *device) State() blockdev.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// Queue implements blockdev.Device.
func (d *device) Queue() blockdev.Queue { return d.q }

// Idle implements blockdev.Device.
func (d *device) Idle() (bool, error) { return d.f.sys.idle(d.State().Number) }

// Start implements blockdev.Device. A number that somebody else took since Create is exchanged for another: State
// tells the one in use.
func (d *device) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.stopped {
		return fmt.Errorf("start %s: started or stopped before", d.f.path(d.state.Number))
	}
	begin, finish := d.add, uint32(cmdStartDev)
	if d.recover {
		begin, finish = d.startRecovery, cmdEndRecovery
	}
	if err := begin(); err != nil {
		return err
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	what := fmt.Sprintf("start ublk%d", d.state.Number)
	if err := d.f.control.run(&d.own, what, d.command(finish, uint64(os.Getpid())), nil); err != nil {
		return err
	}
	d.started = true
	d.f.unreserve(d.state.Number)
	if !d.recover {
		// A queue that hangs on a dead target cannot be set up; that is no reason to do without the device.
		if err := d.f.sys.tune(d.state.Number, d.state.Params.Depth); err != nil {
			return fmt.Errorf("%s: set up its queue: %w", what, err)
		}
	}
	if err := blockdev.WaitForNode(ctx, d.f.path(d.state.Number)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (d *device) command(number uint32, data uint64) command {
	return command{number: number, device: uint32(d.state.Number), data: data}
}

// add makes the character device and says what the block device will be like.
func (d *device) add() error {
	for {
		number := d.state.Number
		err := d.f.control.add(number, len(d.q.slots), markOf(d.state.ID), func(err error) {
			if err == nil { // it succeeded after we gave up
				_ = d.f.control.delete(number)
			}
		})
		if err == nil {
			break
		}
		switch {
		case errors.Is(err, syscall.EACCES):
			return fmt.Errorf("%w: %w: raise /sys/module/ublk_drv/parameters/ublks_max", blockdev.ErrNoDevice, err)
		case !errors.Is(err, syscall.EEXIST):
			return err
		}
		next, err := d.f.reserve()
		d.f.unreserve(number)
		if err != nil {
			return err
		}
		d.state.Number = next
	}
	d.added = true
	cmd := d.command(cmdSetParams, 0)
	cmd.buffer = encodeParams(d.state.Params)
	return d.f.control.run(&d.own, fmt.Sprintf("describe ublk%d to the kernel", d.state.Number), cmd, nil)
}

// startRecovery has the kernel forget the dead server. It refuses that (EINVAL) when an earlier server had it do so and died
// before its queue was ready; then there is nothing left to forget.
func (d *device) startRecovery() error {
	number := d.state.Number
	info, err := d.f.control.info(number)
	if err != nil {
		return err
	}
	switch {
	case info.serverFlags != markOf(d.state.ID):
		return fmt.Errorf("recover ublk%d: %w: it is another volume's", number, os.ErrNotExist)
	case info.state == stateLive:
		return fmt.Errorf("recover ublk%d: its server, process %d, is not gone: %w", number, info.server, blockdev.ErrNotYet)
	case info.state != stateQuiesced:
		return fmt.Errorf("recover ublk%d: %w: it was never started, or is stopped", number, os.ErrNotExist)
	}
	err = d.f.control.run(&d.own, fmt.Sprintf("recover ublk%d", number), d.command(cmdStartRecovery, 0), nil)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: %w", blockdev.ErrNotYet, err)
	case errors.Is(err, syscall.EINVAL):
		return nil
	}
	return err
}

// open has the event loop serve the character device.
func (d *device) open(ctx context.Context) error {
	path := d.f.charPath(d.state.Number)
	if err := blockdev.WaitForNode(ctx, path); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // as uring.Batch wants it
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("open %s: %w: %w", path, blockdev.ErrNotYet, err)
	case err != nil:
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := d.q.begin(fd); err != nil { // the queue has the descriptor now
		return fmt.Errorf("serve %s: %w", path, err)
	}
	return d.q.mapDescriptors()
}

// Resize implements blockdev.Device (Linux 6.16).
func (d *device) Resize(ctx context.Context, bytes uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	features, err := d.f.Features(ctx)
	switch {
	case err != nil:
		return err
	case !features.LiveResize:
		return fmt.Errorf("resize ublk%d: %w: before Linux 6.16 a ublk device cannot grow while it is in use", d.state.Number, blockdev.ErrCannotGrow)
	case bytes == 0 || bytes%uint64(d.state.Params.LogicalBlock) != 0:
		return fmt.Errorf("resize ublk%d: %d bytes are not a multiple of %d", d.state.Number, bytes, d.state.Params.LogicalBlock)
	}
	err = d.f.control.run(&d.own, fmt.Sprintf("resize ublk%d", d.state.Number), d.command(cmdUpdateSize, bytes/512), nil)
	if err != nil {
		return err
	}
	d.state.Params.SizeBytes = bytes
	return nil
}

// Stop implements blockdev.Device. The kernel waits for the requests that are out, and the event loop answers them.
// A start that hangs gets the time to end: it reads the partition table, and whoever stops a device has just given up requests.
func (d *device) Stop(ctx context.Context) error {
	d.own.Forgive(ctx, hungPatience)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	if d.added {
		if err := d.f.end(&d.own, d.state.Number); err != nil {
			return err
		}
	}
	d.stopped = true
	return nil
}

// Close implements blockdev.Device. Idempotent. A device that was not stopped is kept by the kernel, and its requests wait
// for another server without a limit.
func (d *device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if !d.recover && !d.started {
		d.f.unreserve(d.state.Number)
	}
	return d.q.close()
}
