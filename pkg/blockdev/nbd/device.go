package nbd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

const (
	// socketBytes per direction: some requests of the largest size, so that the kernel rarely waits to hand one over.
	socketBytes = 2 << 20
	// maxRequestKiB keeps requests well below regionBytes; large ones gain nothing, as a frame carries 8 KiB.
	maxRequestKiB = 256
	// hungPatience is how long Stop waits for a control call that hangs, of this or another device.
	hungPatience = 3 * time.Second
	// dropWindow is how long after RECONFIGURE the kernel may take to show that it did not want the socket.
	dropWindow = 150 * time.Millisecond
)

// device is one /dev/nbdN.
type device struct {
	f       *Frontend
	q       *queue
	recover bool // RECONFIGURE instead of CONNECT

	mu      sync.Mutex // serialises control calls and guards the fields below
	state   blockdev.State
	kernel  int // the kernel's end of the pair, −1 once handed over
	started bool
	stopped bool
	closed  bool
}

func newDevice(f *Frontend, s blockdev.State, recovering bool) (*device, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	closePair := func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) } // fresh sockets: nothing to lose
	// Only our end is non-blocking: the kernel sends as it likes.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		closePair()
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	for _, fd := range pair {
		if err := setSendBuffer(fd, socketBytes); err != nil {
			closePair()
			return nil, err
		}
	}
	q, err := newQueue(pair[0], s.Params.Depth, regionBytes)
	if err != nil {
		closePair()
		return nil, err
	}
	return &device{f: f, q: q, recover: recovering, state: s, kernel: pair[1]}, nil
}

// setSendBuffer: the sender's limit is the only one that counts on unix sockets.
func setSendBuffer(fd, bytes int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bytes); err == nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bytes); err != nil {
		return fmt.Errorf("set send buffer: %w", err)
	}
	return nil
}

// Path implements blockdev.Device.
func (d *device) Path() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.path()
}

func (d *device) path() string {
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
func (d *device) Idle() (bool, error) {
	return d.f.sys.idle(d.State().Number)
}

// Start implements blockdev.Device. A number that somebody else took since Create is exchanged for another: State
// tells the one in use.
func (d *device) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.stopped {
		return fmt.Errorf("start %s: started or stopped before", d.path())
	}
	var err error
	if d.recover {
		err = d.reconnect()
	} else {
		err = d.connect()
	}
	if err != nil {
		return err
	}
	d.started = true
	d.f.unreserve(d.state.Number)
	d.closeKernelEnd()
	if err := d.settle(); err != nil {
		return fmt.Errorf("start nbd%d: %w", d.state.Number, err)
	}
	if err := blockdev.WaitForNode(ctx, d.path()); err != nil {
		return fmt.Errorf("start %s: %w", d.path(), err)
	}
	return nil
}

func (d *device) connect() error {
	for {
		attributes, err := connectAttributes(d.state.Number, d.kernel, d.state.Params)
		if err != nil {
			return err
		}
		number, id := d.state.Number, d.state.ID
		err = d.handOver(fmt.Sprintf("connect nbd%d", number), genlConnect, attributes, func() {
			// It succeeded after we gave up: a device that nobody serves.
			_ = d.f.disconnect(number, id)
		})
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		next, err := d.f.reserve()
		d.f.unreserve(number)
		if err != nil {
			return err
		}
		d.state.Number = next
	}
}

// handOver makes a control call that carries the kernel's end of the pair. If the call hangs, the descriptor stays open
// until it comes back, because the kernel may yet look up its number. tooLate is called if it succeeds then.
func (d *device) handOver(what string, command uint8, attributes []byte, tooLate func()) error {
	fd := d.kernel
	err := d.f.control.call(what, command, attributes, func(err error) {
		_ = unix.Close(fd) // nobody else has it any more
		if err == nil && tooLate != nil {
			tooLate()
		}
	})
	if errors.Is(err, blockdev.ErrAbandoned) {
		d.kernel = -1
	}
	return err
}

// reconnect replaces the dead socket of an earlier server. The kernel answers "done" and drops the new socket when the
// old one is not dead yet, so the proof is that our end stays open.
func (d *device) reconnect() error {
	attributes, err := reconnectAttributes(d.state.Number, d.kernel, d.state.ID)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("reconnect nbd%d", d.state.Number)
	if err := d.handOver(what, genlReconfigure, attributes, nil); err != nil {
		return err
	}
	d.closeKernelEnd()
	fds := []unix.PollFd{{Fd: int32(d.q.FD())}} // hang-up is always reported
	deadline := time.Now().Add(dropWindow)
	for left := dropWindow; left > 0; left = time.Until(deadline) {
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if n > 0 {
			return fmt.Errorf("%s: %w", what, blockdev.ErrNotYet)
		}
	}
	return nil
}

// settle sets the queue of a new device up, at once: a write to these attributes freezes the queue and waits for every request that is
// unanswered. A process that is killed while it waits keeps its sockets, and the next one gets none of its requests:
// so a device that is taken over, which has its attributes, is left alone.
func (d *device) settle() error {
	if d.recover {
		return nil
	}
	number := d.state.Number
	timeout := strconv.FormatInt(d.state.Params.ReplayAfter.Milliseconds(), 10)
	// CONNECT sets this one and never takes it back: the number's last user may have had a disk that turns (Linux 6.12).
	rotational := "0"
	if d.state.Params.Rotational {
		rotational = "1"
	}
	return d.f.control.Run(fmt.Sprintf("set up the queue of nbd%d", number), func() error {
		if err := d.f.sys.write(number, timeout, "queue", "io_timeout"); err != nil {
			return err
		}
		if err := d.f.sys.write(number, strconv.Itoa(maxRequestKiB), "queue", "max_sectors_kb"); err != nil {
			return err
		}
		return d.f.sys.write(number, rotational, "queue", "rotational")
	}, nil)
}

// Resize implements blockdev.Device. The kernel stops the queue for it, which lasts as long as the requests that are out: mu is not
// held meanwhile, since Path and State must answer. The context's deadline says how long to wait; a kernel that is done later is believed.
func (d *device) Resize(ctx context.Context, bytes uint64) error {
	state := d.State()
	what := fmt.Sprintf("resize nbd%d", state.Number)
	switch {
	case bytes == 0 || bytes%uint64(state.Params.LogicalBlock) != 0:
		return fmt.Errorf("%s: %d bytes are not a multiple of %d", what, bytes, state.Params.LogicalBlock)
	case bytes < state.Params.SizeBytes:
		return fmt.Errorf("%s: it has %d bytes and is never made smaller, to %d", what, state.Params.SizeBytes, bytes)
	}
	attributes, err := resizeAttributes(state.Number, state.ID, bytes)
	if err != nil {
		return err
	}
	timeout := blockdev.ControlTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	err = d.f.control.RunWithin(timeout, what, func() error { return d.f.reconfigure(attributes) }, func(err error) {
		if err == nil {
			d.resized(bytes)
		}
	})
	if err != nil {
		return fmt.Errorf("%s to %d bytes: %w", what, bytes, err)
	}
	d.resized(bytes)
	return nil
}

// resized notes what the kernel did.
func (d *device) resized(bytes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Params.SizeBytes = max(d.state.Params.SizeBytes, bytes)
}

// Stop implements blockdev.Device. Our end of the socket is shut for requests first: a disconnect sends a message of its
// own, and would wait for ever behind a request that the kernel is still trying to hand over. Before that a growth that hangs gets the
// time to end: it waits for requests, which whoever stops a device has just given up.
func (d *device) Stop(ctx context.Context) error {
	d.f.control.Forgive(ctx, hungPatience)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	if d.started || d.recover {
		d.q.refuse()
		if err := d.f.disconnect(d.state.Number, d.state.ID); err != nil {
			return err
		}
	}
	d.stopped = true
	return nil
}

// Close implements blockdev.Device. Idempotent. The kernel keeps a device that was not stopped, and its requests wait for
// another server as long as its dead-connection timeout says.
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
	d.closeKernelEnd()
	return errors.Join(d.q.closeSocket(), d.q.mem.close())
}

func (d *device) closeKernelEnd() {
	if d.kernel >= 0 {
		_ = unix.Close(d.kernel) // the kernel has its own reference, or nobody needs one
		d.kernel = -1
	}
}
