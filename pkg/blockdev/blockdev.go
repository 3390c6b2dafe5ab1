package blockdev

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// Errors that decide what a caller does next.
var (
	// ErrUnsupported: this kernel or container cannot do the front end; the wrapping error says why.
	ErrUnsupported = errors.New("front end not supported here")
	// ErrNoDevice: every device number is taken.
	ErrNoDevice = errors.New("no free device")
	// ErrNotYet: the kernel still holds on to the earlier server; Close, Recover and Start again a little later.
	ErrNotYet = errors.New("earlier server not gone yet")
	// ErrHung: a control call of the kernel did not come back in time.
	ErrHung = errors.New("kernel control call hangs")
	// ErrCannotGrow: this kernel cannot change the size of a live device of this front end; the wrapping error names the
	// kernel. A device that is made anew has the new size.
	ErrCannotGrow = errors.New("live device cannot grow here")
)

// Op is what a request asks for.
type Op uint8

// The operations that a front end hands out.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpTrim
	// OpWriteZeroes may come with the wish that the range keeps its space (BLKZEROOUT). Nobody is told of it: it is announced
	// only for targets that hold room for the whole volume, whether its blocks are written or not.
	OpWriteZeroes
)

// Request is one block request. A queue allocates all of its requests when it is made, so that
// Index is stable and a caller can keep its own state per index.
type Request struct {
	Index  int // 0 ≤ Index < Queue.Depth
	Op     Op
	FUA    bool   // the write must be durable before it completes
	Offset uint64 // bytes, multiple of the logical block
	Length uint32 // bytes
	// Data is the payload of a write, or the space for that of a read: Length bytes that the queue owns and the
	// caller borrows from Poll until Complete. Nil for the other operations, and where Pages is set.
	Data []byte
	// Pages is the payload of a front end that has none in memory: a write's is read from it, a read's written to it, between Poll and
	// Flush after Complete. Nil where Data is set.
	Pages Pages
	// Cookie belongs to the front end.
	Cookie uint64
}

// Pages is data that the kernel holds.
type Pages interface {
	// Place is where the request's data are from an offset in bytes on: a position in a descriptor, which is non-blocking, for pread and pwrite.
	Place(off int64) (fd int, at int64)
}

// Queue is a device's request queue as an event loop sees it: one thread, never blocking. Requests
// come out of Poll, go back through Complete, in any order.
type Queue interface {
	// FD becomes readable when Poll has work, and writable when Flush does.
	FD() int
	// Depth is how many requests can be out at once.
	Depth() int
	// Poll appends the requests that have arrived whole and returns the longer slice, also beside an error: io.EOF when
	// the kernel's end is gone for good. It reads until there is nothing more (FD may be watched edge-triggered), and does
	// not block.
	Poll(dst []*Request) ([]*Request, error)
	// Complete gives a request back; errno 0 is success. The completion may stay queued until Flush.
	Complete(r *Request, errno syscall.Errno)
	// Stalled says that Poll left input behind because the requests that are out hold all memory: call Poll again after
	// a Flush. FD does not announce that input a second time.
	Stalled() bool
	// Flush hands queued completions to the kernel. The loop's thread calls it once before Start. more says that some did not
	// fit: call again when FD is writable, and in any case after a millisecond or so, since memory may have been what was short.
	Flush() (more bool, err error)
}

// Params describes the device to make.
type Params struct {
	// ID identifies the volume to the kernel (Mark, then "initiator:volume@generation"), where the front end can hold it.
	ID            string
	SizeBytes     uint64 // multiple of LogicalBlock
	LogicalBlock  uint32 // bytes; AoE's is 512
	PhysicalBlock uint32 // bytes
	ReadOnly      bool
	Flush         bool // the target can make data durable: announce a volatile write cache
	FUA           bool
	Trim          bool
	WriteZeroes   bool
	Rotational    bool
	Depth         int // requests; 0: 128
	// DeadTimeout is how long the kernel keeps requests while no server of ours is there; 0: an hour.
	DeadTimeout time.Duration
	// ReplayAfter is how long after its issue a request is replayed to a new server; 0: 5 s.
	ReplayAfter time.Duration
}

// State is what must be remembered to find a device again after a restart of this process.
type State struct {
	Frontend string `json:"frontend"`
	Number   int    `json:"number"` // N of /dev/nbdN, /dev/ublkbN
	ID       string `json:"id"`
	Params   Params `json:"params"`
}

// Device is a kernel block device that this process serves. Control calls may block, and must not come from the event loop.
type Device interface {
	// Path is the device node, "/dev/nbd0".
	Path() string
	State() State
	// Queue is the device's queue; an event loop must be serving it before Start.
	Queue() Queue
	// Start makes the device appear. When it returns the device can be opened.
	Start(ctx context.Context) error
	// Idle says whether the kernel has no request out on the device right now.
	Idle() (bool, error)
	// Resize tells the kernel a larger size; only while the target answers. Errors match ErrCannotGrow, or ErrHung when
	// the kernel did not answer in time and may yet do it.
	Resize(ctx context.Context, bytes uint64) error
	// Stop removes the device: pending requests fail unless the event loop completes them meanwhile. The event loop
	// serves the queue until Stop has returned. It does not wait for I/O (ask Idle first). Idempotent.
	Stop(ctx context.Context) error
	// Close releases what the process holds (sockets, memory) without touching the kernel's device. After Stop.
	Close() error
}

// Mark begins the ID of every device that this software makes. A front end that can store an ID finds its devices by it; another
// keeps a mark of its own in the kernel.
const Mark = "aoe-csi:"

// Found is a device in the kernel that carries our mark, whether or not anybody remembers it.
type Found struct {
	Number int    // N of /dev/nbdN, /dev/ublkbN
	Path   string // the device node
	ID     string // of its Params; empty where the front end cannot store it
	// Served: a living process, this one or another, is known to serve it. False is no proof of the contrary where the kernel
	// does not tell (NBD names the process that made a device, not the one that took it over).
	Served bool
}

// Features is what a front end can do on this kernel beyond what Probe asks for.
type Features struct {
	LiveResize bool // Device.Resize works on a device that is in use
}

// Frontend makes devices of one kind.
type Frontend interface {
	// Name is "nbd" or "ublk".
	Name() string
	// Probe says whether it works here: nil, or an error that wraps ErrUnsupported and says why.
	Probe(ctx context.Context) error
	// Features tells what this kernel lets it do; only after a Probe that succeeded.
	Features(ctx context.Context) (Features, error)
	// Create picks a device number and prepares the queue; nothing can be seen on the host before Start.
	Create(ctx context.Context, p Params) (Device, error)
	// Recover prepares a server for a device that an earlier process left; Start then takes it over.
	Recover(ctx context.Context, s State) (Device, error)
	// Exists says whether the kernel still has the block device and it is ours (same ID). False is for good, though Remove may still
	// have something to clear away.
	Exists(s State) (bool, error)
	// Remove ends a device that nobody serves; pending I/O fails. Absent is success.
	Remove(ctx context.Context, s State) error
	// List finds the devices in the kernel that carry our mark. It reads only, opens no device and never waits for one.
	List() ([]Found, error)
}
