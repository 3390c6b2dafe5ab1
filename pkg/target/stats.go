package target

import (
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Stats counts since the shelf was opened.
type Stats struct {
	Received  uint64 // frames
	Sent      uint64
	Malformed uint64 // too short, or no AoE
	Refused   uint64 // from senders that may not, or outside a session
	Dropped   uint64 // no frame or no room in a queue
	Replayed  uint64 // copies of a command that was seen before
	Stale     uint64 // older than the session's window
	TooLong   uint64 // answers longer than the link's MTU
}

type counters struct {
	received, sent, malformed, refused, dropped, replayed, stale, tooLong atomic.Uint64
}

// Stats may be called at any time.
func (s *Shelf) Stats() Stats {
	c := &s.counts
	return Stats{
		Received: c.received.Load(), Sent: c.sent.Load(), Malformed: c.malformed.Load(), Refused: c.refused.Load(),
		Dropped: c.dropped.Load(), Replayed: c.replayed.Load(), Stale: c.stale.Load(), TooLong: c.tooLong.Load(),
	}
}

// quiet is how long a throttled message stays away after it was logged.
const quiet = 10 * time.Second

// throttle lets a log line through once per quiet period, so that garbage on the wire cannot fill a disk.
type throttle struct {
	last atomic.Int64 // Unix nanoseconds
}

func (t *throttle) pass() bool {
	now, last := time.Now().UnixNano(), t.last.Load()
	return now-last >= int64(quiet) && t.last.CompareAndSwap(last, now)
}

// malformed counts a frame that is none.
func (p *port) malformed(raw []byte, err error) {
	p.shelf.counts.malformed.Add(1)
	if !p.shelf.garbage.pass() {
		return
	}
	src := "?"
	if len(raw) >= aoe.EthernetLen {
		src = aoe.Frame(raw).Src().String()
	}
	klog.InfoS("Malformed frames", "err", err, "link", p.link.Name(), "sender", src, "length", len(raw), "soFar", p.shelf.counts.malformed.Load())
}

// diskError reports a failed access to a LUN's bytes; the initiator gets an ATA error.
func (s *Shelf) diskError(l *lun, op string, err error) {
	if s.disk.pass() {
		klog.ErrorS(err, "Disk error", "lun", l.addr(), "op", op)
	}
}
