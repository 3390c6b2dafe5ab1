package ublk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

const (
	defaultDepth = 128
	// maxDepth keeps all submissions of a queue in a ring of reasonable size.
	maxDepth = 1023
	// openUp is the user data of the message that tells a queue to begin.
	openUp = 1 << 32
)

// slot is one tag: a request, and how its data are reached.
type slot struct {
	req blockdev.Request
	q   *queue
}

// queue is the one queue of a device. One event loop owns it, but for begin and close.
//
// Each tag is at any time with the kernel (a command waits to be filled), with the caller (between Poll and Complete), waiting
// to be submitted, or ended (the kernel has given the command back for good).
type queue struct {
	ring  *uring.Ring
	slots []slot // one more than requests can be out: see sysfs.tune
	char  atomic.Int32
	// descriptors are the kernel's descriptions of the requests, mapped read-only; set before the first request.
	descriptors atomic.Pointer[byte]
	mapped      []byte
	begun       chan error // what came of fetching all tags; has room for one

	enabled bool
	live    int // tags that have not ended
	err     error
}

// newQueue makes a queue that has nothing to serve yet.
func newQueue(depth int) (*queue, error) {
	tags := depth + 1
	entries := uint32(1)
	for int(entries) < tags {
		entries *= 2
	}
	r, err := uring.New(entries, uring.SetupDisabled|uring.SetupSingleIssuer|uring.SetupCoopTaskrun)
	if err != nil {
		return nil, err
	}
	q := &queue{ring: r, slots: make([]slot, tags), begun: make(chan error, 1)}
	q.char.Store(-1)
	for i := range q.slots {
		s := &q.slots[i]
		s.q, s.req.Index = q, i
	}
	return q, nil
}

// FD implements blockdev.Queue.
func (q *queue) FD() int { return q.ring.FD() }

// Depth implements blockdev.Queue.
func (q *queue) Depth() int { return len(q.slots) }

// Stalled implements blockdev.Queue.
func (q *queue) Stalled() bool { return false }

// begin has the event loop fetch requests from the character device, which the queue takes, and waits until it has. From a goroutine that
// is not the loop's.
func (q *queue) begin(char int) error {
	q.char.Store(int32(char))
	if err := wake(q.ring.FD(), openUp); err != nil {
		return err
	}
	return <-q.begun
}

// mapDescriptors maps what the kernel says of requests. It comes after begin: a device whose server died between the two can
// be recovered again, one that died with the mapping and without the commands cannot (ublk_ctrl_start_recovery).
func (q *queue) mapDescriptors() error {
	page := os.Getpagesize()
	size := (len(q.slots)*descriptorSize + page - 1) / page * page
	m, err := unix.Mmap(int(q.char.Load()), 0, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map request descriptors: %w", err)
	}
	q.mapped = m
	q.descriptors.Store(&m[0])
	return nil
}

// Poll implements blockdev.Queue.
func (q *queue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	for q.err == nil {
		c, ok := q.ring.Take()
		if !ok {
			return dst, nil
		}
		switch {
		case c.UserData == openUp:
			q.fetchAll()
		case c.Result == 0:
			dst = q.arrived(dst, &q.slots[c.UserData])
		default:
			q.ended(syscall.Errno(-c.Result))
		}
	}
	return dst, q.err
}

// fetchAll gives every tag to the kernel in one system call: a process that is killed has given it all or none.
func (q *queue) fetchAll() {
	q.live = len(q.slots)
	for tag := range q.slots {
		q.command(tag, cmdFetch, 0)
	}
	err := withoutRights(q.submit)
	q.err = errors.Join(q.err, err)
	q.begun <- err
}

// command prepares an I/O command; the ring has room for one of each tag.
func (q *queue) command(tag int, number uint64, result int32) {
	e := q.ring.Next()
	e.Opcode, e.FD, e.Off, e.UserData = uring.OpURingCmd, q.char.Load(), number, uint64(tag)
	*(*ioCommand)(unsafe.Pointer(&e.Command)) = ioCommand{tag: uint16(tag), result: result}
}

// ended books a command that the kernel gave back for good: with ENODEV, when the device goes away.
func (q *queue) ended(errno syscall.Errno) {
	if errno != unix.ENODEV && q.err == nil {
		q.err = fmt.Errorf("ublk command: %w", errno)
	}
	q.live--
	if q.live == 0 && q.err == nil {
		q.err = io.EOF
	}
}

// arrived appends the request that the kernel has put under a tag.
func (q *queue) arrived(dst []*blockdev.Request, s *slot) []*blockdev.Request {
	d := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(q.descriptors.Load()), s.req.Index*descriptorSize)), descriptorSize)
	flags, sectors := binary.NativeEndian.Uint32(d[0:]), binary.NativeEndian.Uint32(d[4:])
	s.req.Offset, s.req.Length = binary.NativeEndian.Uint64(d[8:])*512, sectors*512
	s.req.FUA, s.req.Pages = flags&requestFUA != 0, nil
	switch uint8(flags) {
	case opRead:
		s.req.Op, s.req.Pages = blockdev.OpRead, s
	case opWrite:
		s.req.Op, s.req.Pages = blockdev.OpWrite, s
	case opFlush:
		s.req.Op, s.req.Offset, s.req.Length = blockdev.OpFlush, 0, 0
	case opDiscard:
		s.req.Op = blockdev.OpTrim
	case opWriteZeroes:
		s.req.Op = blockdev.OpWriteZeroes
	default:
		q.Complete(&s.req, unix.EOPNOTSUPP)
		return dst
	}
	return append(dst, &s.req)
}

// Complete implements blockdev.Queue.
func (q *queue) Complete(r *blockdev.Request, errno syscall.Errno) {
	result := -int32(errno)
	if errno == 0 && r.Pages != nil {
		result = int32(r.Length)
	}
	q.command(r.Index, cmdCommitAndFetch, result)
}

// Flush implements blockdev.Queue. The first one makes the calling thread the queue's.
func (q *queue) Flush() (more bool, err error) {
	if !q.enabled {
		if q.err = q.ring.Enable(); q.err != nil {
			return false, q.err
		}
		q.enabled = true
	}
	if q.ring.Waiting() == 0 {
		return false, nil
	}
	return false, q.submit()
}

func (q *queue) submit() error { return q.ring.Submit(0) }

// Place implements blockdev.Pages: a tag's data are in the character device.
func (s *slot) Place(off int64) (fd int, at int64) {
	return int(s.q.char.Load()), dataOffset + int64(s.req.Index)<<tagShift + off
}

// close gives everything back; idempotent. No event loop may be watching it any more.
func (q *queue) close() error {
	errs := []error{q.ring.Close()}
	if q.mapped != nil {
		errs = append(errs, unix.Munmap(q.mapped))
		q.mapped = nil
	}
	if fd := q.char.Swap(-1); fd >= 0 {
		errs = append(errs, unix.Close(int(fd)))
	}
	return errors.Join(errs...)
}
