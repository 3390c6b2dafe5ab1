package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// fakeKernel is the kernel's side of a front end: devices by number, which outlive the process that serves them.
type fakeKernel struct {
	dir string // device nodes
	sys string // what /sys/class/block is to the real one

	mu      sync.Mutex
	devices map[int]*fakeDisk
	next    int
	notYet  int           // how many more times Start says that the old server is not gone
	probe   error         // of Probe
	fail    error         // of Start
	resize  error         // of Resize
	ignore  bool          // Resize says that it is done, and does nothing
	hang    bool          // Resize does not come back in time
	hung    chan struct{} // closed when one hangs; may be nil
}

// fakeDisk is a device in the fake kernel.
type fakeDisk struct {
	id     string
	params blockdev.Params
	server *fakeQueue // nil: nobody serves
	busy   bool       // requests are out, as Idle tells
	ended  bool       // stopped, and not deleted
}

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{dir: t.TempDir(), sys: t.TempDir(), devices: map[int]*fakeDisk{}}
}

// disk returns the device with this ID.
func (k *fakeKernel) disk(id string) *fakeDisk {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (k *fakeKernel) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *fakeKernel) path(n int) string { return filepath.Join(k.dir, fmt.Sprintf("fake%d", n)) }

// setSize writes what sysfs says; the caller holds mu.
func (k *fakeKernel) setSize(n int, bytes uint64) error {
	dir := filepath.Join(k.sys, filepath.Base(k.path(n)))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "size"), fmt.Appendln(nil, bytes/sectorBytes), 0o600)
}

// fakeFrontend is one process's view of it.
type fakeFrontend struct{ k *fakeKernel }

func (f *fakeFrontend) Name() string { return "nbd" }

func (f *fakeFrontend) Probe(context.Context) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	return f.k.probe
}

func (f *fakeFrontend) Create(_ context.Context, p blockdev.Params) (blockdev.Device, error) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	n := f.k.next
	f.k.next++
	q, err := newFakeQueue()
	if err != nil {
		return nil, err
	}
	return &fakeDevice{k: f.k, q: q, state: blockdev.State{Frontend: "nbd", Number: n, ID: p.ID, Params: p}}, nil
}

func (f *fakeFrontend) Recover(_ context.Context, s blockdev.State) (blockdev.Device, error) {
	q, err := newFakeQueue()
	if err != nil {
		return nil, err
	}
	return &fakeDevice{k: f.k, q: q, state: s, recovered: true}, nil
}

func (f *fakeFrontend) Exists(s blockdev.State) (bool, error) {
	d := f.k.disk(s.ID)
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	return d != nil && !d.ended, nil
}

func (f *fakeFrontend) Remove(_ context.Context, s blockdev.State) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	delete(f.k.devices, s.Number)
	return nil
}

func (f *fakeFrontend) Features(context.Context) (blockdev.Features, error) {
	return blockdev.Features{LiveResize: true}, nil
}

func (f *fakeFrontend) List() ([]blockdev.Found, error) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	var found []blockdev.Found
	for n, d := range f.k.devices {
		found = append(found, blockdev.Found{Number: n, Path: f.k.path(n), ID: d.id, Served: d.server != nil})
	}
	return found, nil
}

type fakeDevice struct {
	k         *fakeKernel
	q         *fakeQueue
	state     blockdev.State
	recovered bool
}

func (d *fakeDevice) Path() string { return d.k.path(d.state.Number) }
func (d *fakeDevice) State() blockdev.State {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return d.state
}
func (d *fakeDevice) Queue() blockdev.Queue { return d.q }

func (d *fakeDevice) Start(context.Context) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if d.k.fail != nil {
		return d.k.fail
	}
	if d.recovered {
		if d.k.notYet > 0 {
			d.k.notYet--
			return blockdev.ErrNotYet
		}
		d.k.devices[d.state.Number].server = d.q
		return nil
	}
	d.k.devices[d.state.Number] = &fakeDisk{id: d.state.ID, params: d.state.Params, server: d.q}
	return errors.Join(d.k.setSize(d.state.Number, d.state.Params.SizeBytes), os.WriteFile(d.Path(), nil, 0o600))
}

func (d *fakeDevice) Idle() (bool, error) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	disk := d.k.devices[d.state.Number]
	return disk == nil || !disk.busy, nil
}

func (d *fakeDevice) Resize(ctx context.Context, bytes uint64) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	switch {
	case d.k.resize != nil:
		return d.k.resize
	case d.k.ignore:
		return nil
	case d.k.hang:
		if d.k.hung != nil {
			close(d.k.hung)
		}
		d.k.mu.Unlock()
		<-ctx.Done()
		d.k.mu.Lock()
		return blockdev.ErrHung
	}
	d.state.Params.SizeBytes = bytes
	d.k.devices[d.state.Number].params.SizeBytes = bytes
	return d.k.setSize(d.state.Number, bytes)
}

func (d *fakeDevice) Stop(context.Context) error {
	d.q.end()
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	delete(d.k.devices, d.state.Number)
	return nil
}

func (d *fakeDevice) Close() error {
	d.k.mu.Lock()
	if disk := d.k.devices[d.state.Number]; disk != nil && disk.server == d.q {
		disk.server = nil
	}
	d.k.mu.Unlock()
	return d.q.close()
}

const fakeDepth = 16

// fakeQueue hands out what the test puts in.
type fakeQueue struct {
	fd int // eventfd

	mu       sync.Mutex
	requests [fakeDepth]blockdev.Request
	replies  [fakeDepth]chan syscall.Errno
	arrived  []*blockdev.Request
	ended    bool
	closed   bool
	complete []func()
}

func newFakeQueue() (*fakeQueue, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	return &fakeQueue{fd: fd}, err
}

func (q *fakeQueue) FD() int       { return q.fd }
func (q *fakeQueue) Depth() int    { return fakeDepth }
func (q *fakeQueue) Stalled() bool { return false }

func (q *fakeQueue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	var b [8]byte
	_, _ = unix.Read(q.fd, b[:]) // empties the eventfd, if it was full
	q.mu.Lock()
	defer q.mu.Unlock()
	dst = append(dst, q.arrived...)
	q.arrived = q.arrived[:0]
	if q.ended {
		return dst, io.EOF
	}
	return dst, nil
}

func (q *fakeQueue) Complete(r *blockdev.Request, errno syscall.Errno) {
	q.mu.Lock()
	defer q.mu.Unlock()
	reply := q.replies[r.Index]
	q.complete = append(q.complete, func() { reply <- errno })
}

func (q *fakeQueue) Flush() (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, io.EOF
	}
	for _, f := range q.complete {
		f()
	}
	q.complete = nil
	return false, nil
}

// do asks like the kernel and returns where the answer will be.
func (q *fakeQueue) do(op blockdev.Op, offset uint64, data []byte) <-chan syscall.Errno {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.requests {
		if q.replies[i] == nil {
			reply := make(chan syscall.Errno, 1)
			q.replies[i] = reply
			q.requests[i] = blockdev.Request{Index: i, Op: op, Offset: offset, Length: uint32(len(data)), Data: data}
			q.arrived = append(q.arrived, &q.requests[i])
			q.signal()
			return reply
		}
	}
	panic("more requests than the queue is deep")
}

func (q *fakeQueue) signal() {
	b := [8]byte{1}
	if _, err := unix.Write(q.fd, b[:]); err != nil {
		panic(err)
	}
}

func (q *fakeQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ended && !q.closed {
		q.ended = true
		q.signal()
	}
}

func (q *fakeQueue) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	return unix.Close(q.fd)
}

// io asks and waits for the answer.
func (q *fakeQueue) io(t *testing.T, op blockdev.Op, offset uint64, data []byte) syscall.Errno {
	t.Helper()
	return await(t, q.do(op, offset, data))
}

func await(t *testing.T, reply <-chan syscall.Errno) syscall.Errno {
	t.Helper()
	select {
	case errno := <-reply:
		return errno
	case <-time.After(10 * time.Second):
		t.Fatal("request was not answered")
		return 0
	}
}

var errFake = errors.New("fake failure")
