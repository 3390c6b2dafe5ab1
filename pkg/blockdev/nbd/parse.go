package nbd

import (
	"io"
	"syscall"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// sectorMask: the kernel aligns requests to the logical block, which is never smaller.
const sectorMask = 511

// parse takes whole requests out of the stage until it is empty or a resource is missing (stalled).
func (q *queue) parse(dst []*blockdev.Request) []*blockdev.Request {
	q.stalled = false
	for {
		q.discard()
		if q.cur != nil {
			if !q.fill() {
				return dst
			}
			dst = append(dst, &q.cur.req)
			q.cur = nil
		}
		if q.skip > 0 || q.tail-q.head < requestLen {
			return dst
		}
		h, err := decodeHeader(q.stage[q.head:])
		if err != nil {
			q.err = err
			return dst
		}
		if h.kind == cmdDisconnect {
			q.err = io.EOF
			return dst
		}
		s := q.begin(h)
		if s == nil {
			q.stalled = true
			return dst
		}
		q.head += requestLen
		dst = q.dispatch(dst, s, h)
	}
}

// discard drops the payload of a refused write.
func (q *queue) discard() {
	n := min(q.skip, uint64(q.tail-q.head))
	q.head += int(n)
	q.skip -= n
}

// fill moves payload from the stage to the current write and says whether it is complete.
func (q *queue) fill() bool {
	data := q.cur.req.Data
	n := copy(data[q.curGot:], q.stage[q.head:q.tail])
	q.head += n
	q.curGot += n
	return q.curGot == len(data)
}

// begin finds a slot, and memory where the request needs it; nil when there is none now. The request's errno (in
// failed) says whether it can be served at all.
func (q *queue) begin(h header) *slot {
	if len(q.idle) == 0 {
		return nil
	}
	index := q.idle[len(q.idle)-1]
	s := &q.slots[index]
	s.failed = !servable(h, q.mem.capacity())
	s.req.Op, s.req.FUA, s.req.Data = operation(h.kind), h.flags&flagFUA != 0, nil
	s.req.Offset, s.req.Length, s.req.Cookie = h.offset, h.length, h.cookie
	if !s.failed && (s.req.Op == blockdev.OpRead || s.req.Op == blockdev.OpWrite) {
		data, page, ok := q.mem.alloc(int(h.length))
		if !ok {
			return nil
		}
		s.req.Data, s.page = data, page
	}
	q.idle = q.idle[:len(q.idle)-1]
	return s
}

// dispatch hands the request out, waits for its payload, or refuses it.
func (q *queue) dispatch(dst []*blockdev.Request, s *slot, h header) []*blockdev.Request {
	switch {
	case s.failed:
		if h.kind == cmdWrite {
			q.skip = uint64(h.length)
		}
		q.Complete(&s.req, syscall.EINVAL)
	case h.kind == cmdWrite:
		q.cur, q.curGot = s, 0
	default:
		dst = append(dst, &s.req)
	}
	return dst
}

func operation(kind uint16) blockdev.Op {
	switch kind {
	case cmdWrite:
		return blockdev.OpWrite
	case cmdFlush:
		return blockdev.OpFlush
	case cmdTrim:
		return blockdev.OpTrim
	case cmdWriteZeroes:
		return blockdev.OpWriteZeroes
	default:
		return blockdev.OpRead
	}
}

// servable says whether a request makes sense and can ever be held in memory.
func servable(h header, capacity int) bool {
	switch h.kind {
	case cmdFlush:
		return true
	case cmdTrim, cmdWriteZeroes:
		return h.length > 0 && (h.offset|uint64(h.length))&sectorMask == 0
	case cmdRead, cmdWrite:
		return h.length > 0 && (h.offset|uint64(h.length))&sectorMask == 0 && int64(h.length) <= int64(capacity)
	default:
		return false
	}
}
