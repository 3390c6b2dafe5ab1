package initiator

import (
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

const (
	// tableSlots is how far the newest counter may run ahead of the oldest outstanding one.
	tableSlots = 4096
	// maxWindow is the most frames that can be outstanding.
	maxWindow = tableSlots / 4
	// foreignCounters are those of data frames without a session; the other half is for control frames, whose epoch is 0, too.
	foreignCounters = aoe.TagCounters / 2
)

// entry is an outstanding data frame.
type entry struct {
	tag     uint32
	req     *Request // nil: the entry is free
	from    uint32   // sectors before it in the request
	sectors uint32   // 0 for a flush
	path    *path    // nil: its path is gone
	frame   *pool.Frame
	parked  bool          // waits for a path
	firstAt time.Duration // when the frame was first sent over its path
	sentAt  time.Duration // the last time
	due     time.Duration // retransmission
	rto     time.Duration
	sends   int
	quick   bool // sent again before its timeout
	// before and after are its neighbours among its path's outstanding frames.
	before, after *entry
	// versions is how often the frame was refused for its version.
	versions int
	mark     uint64 // of a flush: how many writes were acknowledged when it was first sent
}

// lba is the entry's first sector.
func (e *entry) lba() uint64 { return e.req.LBA + uint64(e.from) }

// units is what the entry's answer takes from Request.left.
func (e *entry) units() uint32 {
	if e.req.Op == OpFlush {
		return 1
	}
	return e.sectors
}

// slow says that the target may take long without anything being lost.
func (e *entry) slow() bool { return e.req.Op == OpFlush || e.req.Op == OpTrim || e.req.FUA }

// span is a part of a request whose frame was given up.
type span struct {
	req           *Request
	from, sectors uint32
}

func (s *span) units() uint32 {
	if s.req.Op == OpFlush {
		return 1
	}
	return s.sectors
}

// table finds outstanding frames by tag. Everything is allocated by init.
//
// Invariant: the counters of all entries lie in [oldest, next), which is at most window long, so that no two share a slot.
type table struct {
	entries  []entry
	free     []uint16
	slots    [tableSlots]uint16 // entry's index + 1, by counter
	next     uint32
	oldest   uint32
	counters uint32 // next and oldest wrap around here
	window   uint32
}

func (t *table) init(size int) {
	t.entries = make([]entry, size)
	t.free = make([]uint16, size)
	for i := range t.free {
		t.free[i] = uint16(size - 1 - i)
	}
}

// restart begins a new sequence of counters; no entry may be in use.
func (t *table) restart(first, counters, window uint32) {
	t.counters = counters
	t.next = first % counters
	t.oldest = t.next
	t.window = min(max(window, 1), tableSlots)
}

// room says whether add may be called.
func (t *table) room() bool {
	return len(t.free) > 0 && (t.next-t.oldest)%t.counters < t.window
}

// used is how many entries are in use.
func (t *table) used() int { return len(t.entries) - len(t.free) }

// counter takes a counter without an entry.
func (t *table) counter() uint32 {
	n := t.next
	t.next = (t.next + 1) % t.counters
	t.advance()
	return n
}

// add takes an entry and the next counter.
func (t *table) add() (*entry, uint32) {
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	n := t.next
	t.next = (t.next + 1) % t.counters
	t.slots[n%tableSlots] = i + 1
	return &t.entries[i], n
}

// find returns the entry with this tag, or nil.
func (t *table) find(tag uint32) *entry {
	i := t.slots[aoe.TagCounter(tag)%tableSlots]
	if i == 0 || t.entries[i-1].tag != tag {
		return nil
	}
	return &t.entries[i-1]
}

// remove frees an entry; its frame is released before.
func (t *table) remove(e *entry) {
	slot := &t.slots[aoe.TagCounter(e.tag)%tableSlots]
	t.free = append(t.free, *slot-1)
	*slot = 0
	*e = entry{}
	t.advance()
}

func (t *table) advance() {
	for t.oldest != t.next && t.slots[t.oldest%tableSlots] == 0 {
		t.oldest = (t.oldest + 1) % t.counters
	}
}
