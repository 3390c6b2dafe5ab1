package ublk

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// io_uring's numbers (include/uapi/linux/io_uring.h).
const (
	setupCQSize       = 1 << 3
	setupDisabled     = 1 << 6
	setupCoopTaskrun  = 1 << 8
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12

	offSQRing = 0
	offSQEs   = 0x10000000

	enterGetEvents = 1

	registerEnableRings = 12

	opURingCmd = 46
	opMsgRing  = 40

	featSingleMmap = 1
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

// sqe is struct io_uring_sqe. In a ring with SQE128 there are 64 bytes more behind it, which continue the command.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64 // of a command: its number
	addr     uint64
	len      uint32
	rwFlags  uint32
	userData uint64
	_        uint64
	command  [16]byte
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ring is an io_uring. Nothing in it is safe for concurrent use.
type ring struct {
	fd      int
	rings   []byte
	entries []byte
	stride  uintptr // of an sqe

	sqHead, sqTail *atomic.Uint32
	sqMask         uint32
	cqHead, cqTail *atomic.Uint32
	cqMask         uint32
	cqes           unsafe.Pointer
	tail           uint32 // what next has lent
	submitted      uint32 // what the kernel has taken
}

// newRing makes a ring with room for so many submissions, a power of two, and twice as many completions.
func newRing(entries, flags uint32) (*ring, error) {
	p := ringParams{flags: flags | setupCQSize, cqEntries: 2 * entries}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), stride: 64}
	if flags&setupSQE128 != 0 {
		r.stride = 128
	}
	if p.features&featSingleMmap == 0 {
		return nil, errors.Join(errors.New("io_uring of a kernel before 5.4"), r.close())
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	var err error
	const protection, kind = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), protection, kind); err != nil {
		return nil, errors.Join(fmt.Errorf("map io_uring: %w", err), r.close())
	}
	if r.entries, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(r.stride), protection, kind); err != nil {
		return nil, errors.Join(fmt.Errorf("map io_uring: %w", err), r.close())
	}
	r.sqHead, r.sqTail, r.sqMask = r.counter(p.sq.head), r.counter(p.sq.tail), *(*uint32)(r.at(p.sq.mask))
	r.cqHead, r.cqTail, r.cqMask = r.counter(p.cq.head), r.counter(p.cq.tail), *(*uint32)(r.at(p.cq.mask))
	r.cqes = r.at(p.cq.cqes)
	for i := range p.sqEntries { // submissions are used in turn: the table of indexes never changes
		*(*uint32)(r.at(p.sq.array + 4*i)) = i
	}
	return r, nil
}

func (r *ring) at(offset uint32) unsafe.Pointer      { return unsafe.Pointer(&r.rings[offset]) }
func (r *ring) counter(offset uint32) *atomic.Uint32 { return (*atomic.Uint32)(r.at(offset)) }

// next lends the next submission, zeroed; nil when the ring is full. It goes to the kernel with submit.
func (r *ring) next() *sqe {
	if r.tail-r.sqHead.Load() > r.sqMask {
		return nil
	}
	e := (*sqe)(unsafe.Pointer(&r.entries[uintptr(r.tail&r.sqMask)*r.stride]))
	*e = sqe{}
	r.tail++
	return e
}

// submit hands over what next has lent, runs the kernel's work for this thread, and waits for so many completions.
func (r *ring) submit(wait uint32) error {
	r.sqTail.Store(r.tail)
	enter := unix.Syscall6
	if wait == 0 {
		enter = unix.RawSyscall6 // see package brief
	}
	for {
		n, _, errno := enter(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.submitted), uintptr(wait), enterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return os.NewSyscallError("io_uring_enter", errno)
		}
		if errno == 0 {
			r.submitted += uint32(n)
		}
		if r.submitted == r.tail && (wait == 0 || r.ready()) {
			return nil
		}
	}
}

// ready says whether a completion can be taken.
func (r *ring) ready() bool { return r.cqHead.Load() != r.cqTail.Load() }

// take returns the oldest completion, if there is one.
func (r *ring) take() (c cqe, ok bool) {
	head := r.cqHead.Load()
	if head == r.cqTail.Load() {
		return c, false
	}
	c = *(*cqe)(unsafe.Add(r.cqes, uintptr(head&r.cqMask)*unsafe.Sizeof(c)))
	r.cqHead.Store(head + 1)
	return c, true
}

// enable lets a ring that was made disabled work; the calling thread becomes the one that may submit.
func (r *ring) enable() error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEnableRings, 0, 0, 0, 0)
	return os.NewSyscallError("io_uring_register", errnoOrNil(errno))
}

func errnoOrNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// close ends the ring; the kernel cancels what is pending a little later. Idempotent.
func (r *ring) close() error {
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
