package nbd

import (
	"io"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

const (
	// defaultDepth is the driver's own queue depth per socket; it never has more requests out.
	defaultDepth = 128
	// regionBytes is what the requests of one device may hold together: about the frames that the largest window
	// can carry at a time, so that more would only wait here instead of in the kernel.
	regionBytes = 2 << 20
	// stageBytes of the stream are read ahead: hundreds of headers, or the payloads of some small writes.
	stageBytes = 64 << 10
	// maxSegments of header and data go out in one system call (the kernel takes up to 1024).
	maxSegments = 256
)

// slot is one request and what the queue must remember for it.
type slot struct {
	req    blockdev.Request
	page   int // of the region, where Data begins
	failed bool
	reply  [replyLen]byte
}

// queue is the server's end of the socket. One event loop owns it, but for closeSocket and shutdown.
//
// In: bytes are read into the stage, or, while a write's payload is incomplete, straight into its Data with the stage
// behind it. A header leaves the stage only when a slot and memory for it are there, so that running out of them
// (back-pressure) leaves nothing half done. Out: completed slots wait in a ring until Flush has written them whole.
type queue struct {
	fd    atomic.Int32 // −1 when closed
	mem   *region
	slots []slot
	idle  []int32 // stack of slots nobody has

	stage      []byte
	head, tail int    // what is staged
	cur        *slot  // the write whose payload is arriving
	curGot     int    // bytes of it
	skip       uint64 // bytes of a refused write's payload still to come
	drained    bool   // the socket had no more when it was last read
	stalled    bool
	err        error // what ended the stream

	ring    []int32 // completed slots, oldest first
	first   int     // of the ring
	count   int
	written int // bytes of the first one that the kernel has

	in     [2]unix.Iovec
	out    [maxSegments]unix.Iovec
	outMsg unix.Msghdr
}

func newQueue(fd, depth, memory int) (*queue, error) {
	mem, err := newRegion(memory)
	if err != nil {
		return nil, err
	}
	q := &queue{
		mem:   mem,
		slots: make([]slot, depth),
		idle:  make([]int32, depth),
		ring:  make([]int32, depth),
		stage: make([]byte, stageBytes),
	}
	q.fd.Store(int32(fd))
	for i := range q.slots {
		q.slots[i].req.Index = i
		q.idle[i] = int32(depth - 1 - i)
	}
	return q, nil
}

// FD implements blockdev.Queue.
func (q *queue) FD() int { return int(q.fd.Load()) }

// Depth implements blockdev.Queue.
func (q *queue) Depth() int { return len(q.slots) }

// Stalled implements blockdev.Queue.
func (q *queue) Stalled() bool { return q.stalled }

// Poll implements blockdev.Queue.
func (q *queue) Poll(dst []*blockdev.Request) ([]*blockdev.Request, error) {
	if q.err != nil {
		return dst, q.err
	}
	q.drained = false
	for {
		dst = q.parse(dst)
		if q.err != nil {
			return dst, q.err
		}
		if q.stalled || q.drained {
			return dst, nil
		}
		if q.err = q.receive(); q.err != nil {
			return dst, q.err
		}
	}
}

// receive reads once: the rest of the current payload, then the stage.
func (q *queue) receive() error {
	if q.head > 0 {
		q.tail = copy(q.stage, q.stage[q.head:q.tail])
		q.head = 0
	}
	count, wanted, payload := 0, 0, 0
	if q.cur != nil {
		rest := q.cur.req.Data[q.curGot:]
		payload = len(rest)
		q.in[count].Base = unsafe.SliceData(rest)
		q.in[count].SetLen(payload)
		wanted += payload
		count++
	}
	space := q.stage[q.tail:]
	q.in[count].Base = unsafe.SliceData(space)
	q.in[count].SetLen(len(space))
	wanted += len(space)
	count++

	n, errno := q.readv(count)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		q.drained = errno == unix.EAGAIN
		return nil
	case errno != 0 || n == 0:
		return io.EOF
	}
	// A stream socket gives all it has: a short read empties it, and what comes later is announced anew.
	q.drained = n < wanted
	if payload > 0 {
		got := min(n, payload)
		q.curGot += got
		n -= got
	}
	q.tail += n
	return nil
}

// readv reads from the socket, which does not block, so that the runtime need not know (see package brief).
func (q *queue) readv(count int) (int, syscall.Errno) {
	fd := q.fd.Load()
	if fd < 0 {
		return 0, 0
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(&q.in[0])), uintptr(count))
	return int(n), errno
}

// Complete implements blockdev.Queue.
func (q *queue) Complete(r *blockdev.Request, errno syscall.Errno) {
	s := &q.slots[r.Index]
	encodeReply(s.reply[:], r.Cookie, errno)
	s.failed = errno != 0
	q.ring[(q.first+q.count)%len(q.ring)] = int32(r.Index)
	q.count++
}

// Flush implements blockdev.Queue.
func (q *queue) Flush() (more bool, err error) {
	for q.count > 0 {
		segments := q.gather()
		n, errno := q.sendmsg(segments)
		switch errno {
		case 0:
			q.advance(n)
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOMEM, unix.ENOBUFS:
			return true, nil
		default:
			// The kernel's end is gone, and with it who waits for these answers.
			q.advance(1 << 62)
			return false, io.EOF
		}
	}
	return false, nil
}

// gather fills the output segments from the ring and returns how many there are.
func (q *queue) gather() int {
	segments, skip := 0, q.written
	for i := 0; i < q.count && segments+2 <= maxSegments; i++ {
		s := &q.slots[q.ring[(q.first+i)%len(q.ring)]]
		if skip < replyLen {
			q.out[segments].Base = &s.reply[skip]
			q.out[segments].SetLen(replyLen - skip)
			segments++
			skip = 0
		} else {
			skip -= replyLen
		}
		if data := s.replyData(); len(data) > skip {
			q.out[segments].Base = &data[skip]
			q.out[segments].SetLen(len(data) - skip)
			segments++
		}
		skip = 0
	}
	return segments
}

// replyData is what follows the reply's header: the data of a read that succeeded.
func (s *slot) replyData() []byte {
	if s.req.Op != blockdev.OpRead || s.failed {
		return nil
	}
	return s.req.Data
}

// advance records that the kernel took n more bytes and frees what is out whole.
func (q *queue) advance(n int) {
	q.written += n
	for q.count > 0 {
		index := q.ring[q.first]
		s := &q.slots[index]
		size := replyLen + len(s.replyData())
		if q.written < size {
			return
		}
		q.written -= size
		q.first = (q.first + 1) % len(q.ring)
		q.count--
		q.free(index)
	}
	q.written = 0
}

func (q *queue) free(index int32) {
	s := &q.slots[index]
	if s.req.Data != nil {
		q.mem.release(s.page, len(s.req.Data))
		s.req.Data = nil
	}
	q.idle = append(q.idle, index)
}

// sendmsg does not block, either.
func (q *queue) sendmsg(segments int) (int, syscall.Errno) {
	fd := q.fd.Load()
	if fd < 0 {
		return 0, unix.EPIPE
	}
	q.outMsg.Iov = &q.out[0]
	q.outMsg.SetIovlen(segments)
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&q.outMsg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

// refuse ends the stream of requests, from any goroutine: the kernel's sends fail, also one that is under way, and Poll
// says io.EOF once it has read what is there. Answers still go out.
func (q *queue) refuse() {
	if fd := q.fd.Load(); fd >= 0 {
		_ = unix.Shutdown(int(fd), unix.SHUT_RD) // fails only when the kernel's end is gone
	}
}

// closeSocket closes the descriptor; idempotent. No event loop may be watching it any more.
func (q *queue) closeSocket() error {
	if fd := q.fd.Swap(-1); fd >= 0 {
		return unix.Close(int(fd))
	}
	return nil
}
