package initiator

import (
	"strconv"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Op is what a request asks for.
type Op uint8

// The operations.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpTrim
)

// String is the operation's name.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	}
	return "operation " + strconv.Itoa(int(o))
}

// Completer is told when a request is done, on the shard's thread; it may submit from there.
type Completer interface {
	Complete(r *Request)
}

// Pages is data that is not in this process's memory.
type Pages interface {
	// Place is where the request's data are from an offset in bytes on: a position in a descriptor, for pread and pwrite. The descriptor is
	// non-blocking, and needs no disk (uring.Transfer).
	Place(off int64) (fd int, at int64)
}

// Request is one block request. The caller allocates it, may use it again after Complete, and leaves it alone between.
type Request struct {
	Op  Op
	FUA bool   // a write that is durable when it completes; only where Info.FUA
	LBA uint64 // of 512 bytes
	// Sectors of 512 bytes: more than 0, except for a flush.
	Sectors uint32
	// Data is what a write sends or the space for what a read brings, at least Sectors·512 bytes, borrowed from Submit until
	// Complete. Others leave it nil, and those with Pages.
	Data []byte
	// Pages has that instead when it is not in this process's memory: each frame's part is read from there, or written there, once, between
	// Submit and Complete, on the shard's thread. An error fails the request.
	Pages Pages
	// Done is told once, also if Submit found the request wrong.
	Done Completer
	// Err is the outcome: nil, or an error that matches one of this package's.
	Err error
	// Index is the caller's.
	Index int

	framed uint32 // sectors that have been put into frames, from the start on
	left   uint32 // sectors not yet answered (a flush counts 1)
	staged uint32 // parts that copies has
	held   bool   // has waited behind a late copy
	next   *Request
}

// units is what left counts down from.
func (r *Request) units() uint32 {
	if r.Op == OpFlush {
		return 1
	}
	return r.Sectors
}

// fits says whether there is room for what the request moves.
func (r *Request) fits() bool {
	return r.Op == OpTrim || r.Pages != nil || uint64(len(r.Data)) >= uint64(r.Sectors)*aoe.SectorSize
}

// modifies says whether a late copy of one of the request's frames can change data.
func (r *Request) modifies() bool { return r.Op == OpWrite || r.Op == OpTrim }

// requestList is a queue through Request.next.
type requestList struct {
	first, last *Request
}

func (l *requestList) empty() bool { return l.first == nil }

func (l *requestList) push(r *Request) {
	r.next = nil
	if l.last == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
}

// pop removes the first; the list must not be empty.
func (l *requestList) pop() *Request {
	r := l.first
	l.first, r.next = r.next, nil
	if l.first == nil {
		l.last = nil
	}
	return r
}

// prepend puts all of other before l and empties other.
func (l *requestList) prepend(other *requestList) {
	if other.empty() {
		return
	}
	other.last.next = l.first
	if l.last == nil {
		l.last = other.last
	}
	l.first = other.first
	*other = requestList{}
}
