package initiator

import "time"

// maxResent is how many retransmitted frames are remembered after their answer.
const maxResent = 64

// answered is a frame that was sent more than once and has been answered.
type answered struct {
	path  *path
	tag   uint32
	quick bool          // sent again before its timeout
	rtt   time.Duration // from its first sending to its first answer
}

// resent remembers the latest of those. A second answer says that the first copy was not lost, only slow (compare RFC 3522 and
// 3708, which tell the same from time stamps and from duplicate acknowledgements).
type resent struct {
	frames [maxResent]answered
	next   int
}

func (r *resent) put(a answered) {
	r.frames[r.next] = a
	r.next = (r.next + 1) % maxResent
}

// take says whether an answer that nobody waits for is the second to such a frame, and tells the path once.
func (r *resent) take(p *path, tag uint32) bool {
	for i := range r.frames {
		a := &r.frames[i]
		if a.path == p && a.tag == tag {
			p.late(a.rtt)
			if a.quick {
				p.mistaken()
			}
			*a = answered{}
			return true
		}
	}
	return false
}
