package uring

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/io_uring.h: flags for New, and operations.
const (
	SetupDisabled     = 1 << 6 // until Enable
	SetupCoopTaskrun  = 1 << 8
	SetupSQE128       = 1 << 10
	SetupSingleIssuer = 1 << 12

	OpRead     = 22
	OpWrite    = 23
	OpMsgRing  = 40
	OpURingCmd = 46

	setupCQSize = 1 << 3

	offSQRing = 0
	offSQEs   = 0x10000000

	enterGetEvents = 1

	registerEnableRings = 12

	featSingleMmap = 1
	featRWCurPos   = 1 << 3 // came with OpRead and OpWrite, Linux 5.6
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32

	_  [3]uint32
	sq struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// Entry is a submission, struct io_uring_sqe. In a ring with SetupSQE128 there are 64 bytes more behind it, which continue the command.
type Entry struct {
	Opcode   uint8
	Flags    uint8
	ioprio   uint16
	FD       int32
	Off      uint64 // of a command: its number
	Addr     uint64
	Len      uint32
	RWFlags  uint32
	UserData uint64 // comes back with the completion
	_        uint64
	Command  [16]byte
}

// Completion is struct io_uring_cqe.
type Completion struct {
	UserData uint64
	Result   int32 // what the system call would return, an errno negative
	flags    uint32
}

// Ring is an io_uring. Nothing in it is safe for concurrent use.
type Ring struct {
	fd       int
	features uint32
	rings    []byte
	entries  []byte
	stride   uintptr // of an Entry

	sqHead, sqTail *atomic.Uint32
	sqMask         uint32
	cqHead, cqTail *atomic.Uint32
	cqMask         uint32
	cqes           unsafe.Pointer
	tail           uint32 // what Next has lent
	submitted      uint32 // what the kernel has taken
}

// New makes a ring with room for so many submissions, a power of two, and twice as many completions. Close ends it.
func New(entries, flags uint32) (*Ring, error) {
	p := ringParams{flags: flags | setupCQSize, cqEntries: 2 * entries}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &Ring{fd: int(fd), features: p.features, stride: 64}
	if flags&SetupSQE128 != 0 {
		r.stride = 128
	}
	if p.features&featSingleMmap == 0 {
		return nil, errors.Join(errors.New("io_uring of a kernel before 5.4"), r.Close())
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(Completion{})))
	var err error
	const protection, kind = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), protection, kind); err != nil {
		return nil, errors.Join(fmt.Errorf("map io_uring: %w", err), r.Close())
	}
	if r.entries, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(r.stride), protection, kind); err != nil {
		return nil, errors.Join(fmt.Errorf("map io_uring: %w", err), r.Close())
	}
	r.sqHead, r.sqTail, r.sqMask = r.counter(p.sq.head), r.counter(p.sq.tail), *(*uint32)(r.at(p.sq.mask))
	r.cqHead, r.cqTail, r.cqMask = r.counter(p.cq.head), r.counter(p.cq.tail), *(*uint32)(r.at(p.cq.mask))
	r.cqes = r.at(p.cq.cqes)
	for i := range p.sqEntries { // submissions are used in turn: the table of indexes never changes
		*(*uint32)(r.at(p.sq.array + 4*i)) = i
	}
	return r, nil
}

func (r *Ring) at(offset uint32) unsafe.Pointer      { return unsafe.Pointer(&r.rings[offset]) }
func (r *Ring) counter(offset uint32) *atomic.Uint32 { return (*atomic.Uint32)(r.at(offset)) }

// FD is readable while there are completions.
func (r *Ring) FD() int { return r.fd }

// Next lends the next submission, zeroed; nil when the ring is full. It goes to the kernel with Submit.
func (r *Ring) Next() *Entry {
	if r.tail-r.sqHead.Load() > r.sqMask {
		return nil
	}
	e := (*Entry)(unsafe.Pointer(&r.entries[uintptr(r.tail&r.sqMask)*r.stride]))
	*e = Entry{}
	r.tail++
	return e
}

// Waiting is how many submissions Next has lent since the kernel last took some.
func (r *Ring) Waiting() int { return int(r.tail - r.submitted) }

// Submit hands over what Next has lent, runs the kernel's work for this thread, and waits for so many completions; with 0 the
// runtime is not told (package brief has the reasons).
func (r *Ring) Submit(wait uint32) error {
	for {
		errno := r.enter(wait, wait == 0)
		if errno != 0 && errno != unix.EINTR {
			return os.NewSyscallError("io_uring_enter", errno)
		}
		if r.Waiting() == 0 && (wait == 0 || r.ready()) {
			return nil
		}
	}
}

// enter is one io_uring_enter(2).
func (r *Ring) enter(wait uint32, brief bool) syscall.Errno {
	r.sqTail.Store(r.tail)
	call := unix.Syscall6
	if brief {
		call = unix.RawSyscall6
	}
	n, _, errno := call(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.submitted), uintptr(wait), enterGetEvents, 0, 0)
	if errno == 0 {
		r.submitted += uint32(n)
	}
	return errno
}

// TakeBack forgets the submissions that the kernel has not taken: it looks at them in enter only.
func (r *Ring) TakeBack() {
	r.tail = r.submitted
	r.sqTail.Store(r.tail)
}

// ready says whether a completion can be taken.
func (r *Ring) ready() bool { return r.cqHead.Load() != r.cqTail.Load() }

// Take returns the oldest completion, if there is one.
func (r *Ring) Take() (c Completion, ok bool) {
	head := r.cqHead.Load()
	if head == r.cqTail.Load() {
		return c, false
	}
	c = *(*Completion)(unsafe.Add(r.cqes, uintptr(head&r.cqMask)*unsafe.Sizeof(c)))
	r.cqHead.Store(head + 1)
	return c, true
}

// Enable lets a ring that was made disabled work; with SetupSingleIssuer the calling thread becomes the one that may submit.
func (r *Ring) Enable() error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEnableRings, 0, 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	return nil
}

// Close ends the ring; the kernel cancels what is pending a little later. Idempotent.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	var errs []error
	for _, m := range [][]byte{r.entries, r.rings} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	errs = append(errs, unix.Close(r.fd))
	r.fd = -1
	return errors.Join(errs...)
}
