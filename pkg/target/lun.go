package target

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Limits of one LUN.
const (
	// lunWorkers run file I/O of one LUN at once.
	lunWorkers = 8
	// lunQueue is how many frames wait for a worker; what exceeds it is dropped, as the buffer count announces.
	lunQueue = 256
	// lunRequests is how many OPENs and in-band edits wait.
	lunRequests = 32
)

// sender is an address that may use a managed LUN, and whose it is.
type sender struct {
	mac  aoe.MAC
	node string
}

// lun serves one LUN. Changes that are stored go through control, then rec, then the store, then mu: what frames see is
// durable already. Frames and workers take mu only, for a few instructions.
type lun struct {
	shelf      *Shelf
	uuid       string
	generation string
	slot       uint8
	access     Access
	back       File

	// control is held over a change of rec, its way to the disk and the waiting for older writes.
	control sync.Locker
	rec     atomic.Pointer[lunRecord] // replaced under control, never changed in place

	jobs     chan *job     // reads, flushes; writes of managed LUNs
	ordered  chan *job     // writes of open LUNs: one worker, so that a late duplicate stays before newer data
	requests chan *job     // OPEN, reservations, masks, config strings
	kick     chan struct{} // the cache epoch waits to be stored
	workers  group
	clerk    group

	// syncing is held over fdatasync: the kernel reports an error to one caller only, and none may report success
	// before the loss is recorded.
	syncing sync.Locker

	// inline is held by ports from before they judge a request until they have served it themselves: by several at a time, or by one
	// alone where the order of writes counts. It is taken before mu, and nobody waits for a disk with it.
	inline sync.RWMutex

	mu sync.Mutex
	// All below is guarded by mu.
	closed     bool
	offline    bool // a lost cache is not stored yet; nothing is served
	unmarked   bool // … nor marked
	flushLost  bool // open LUNs: a flush failed, all later ones fail, too
	sectors    uint64
	cacheEpoch uint64
	senders    []sender
	sessions   [int(aoe.MaxEpoch) + 1]*session
	freed      [int(aoe.MaxEpoch) + 1]time.Time
	config     []byte
	mask       []aoe.MAC
	reserved   []aoe.MAC
	// rules counts the changes of who may do what; a job checked under older rules is checked again.
	rules uint64
	// ticks has a counter per worker, odd while it runs a job.
	ticks [lunWorkers + 1]uint64
	// behind counts the writes in ordered, none of which a later one may overtake.
	behind   int
	finished condition // a job finished while somebody waits
	waiting  int
}

// newLun makes a LUN from its record; start makes it serve.
func newLun(s *Shelf, rec *lunRecord, back File) *lun {
	l := &lun{
		shelf: s, uuid: rec.UUID, generation: rec.Generation, slot: rec.Slot, access: rec.Access, back: back,
		jobs:     make(chan *job, lunQueue),
		ordered:  make(chan *job, lunQueue),
		requests: make(chan *job, lunRequests),
		kick:     make(chan struct{}, 1),
		control:  newLock(s.turns),
		syncing:  newLock(s.turns),
		workers:  group{turns: s.turns},
		clerk:    group{turns: s.turns},
	}
	l.finished = newCondition(s.host, &l.mu)
	l.rec.Store(rec)
	l.adopt(rec)
	l.cacheEpoch = rec.CacheEpoch
	now := s.host.Now()
	for epoch := range l.freed {
		if rec.UsedEpochs&(1<<epoch) != 0 {
			l.freed[epoch] = now
		}
	}
	return l
}

// adopt makes a stored record the one that frames are judged by. The caller holds mu or is alone.
func (l *lun) adopt(rec *lunRecord) {
	l.sectors = uint64(rec.SizeBytes) / aoe.SectorSize
	l.config, l.mask, l.reserved = rec.Config, rec.Mask, rec.Reserved
	senders := make([]sender, 0, len(rec.Admitted))
	for _, a := range rec.Admitted {
		for _, mac := range a.MACs {
			senders = append(senders, sender{mac: mac, node: a.Node})
		}
	}
	l.senders = senders
	l.rules++
}

// start begins the LUN's goroutines; stop ends them.
func (l *lun) start() {
	for i := range lunWorkers {
		l.workers.Go(func() { l.work(i, l.jobs) })
	}
	l.workers.Go(func() { l.work(lunWorkers, l.ordered) })
	l.clerk.Go(l.serveRequests)
}

// stop makes frames to the LUN vanish, lets running jobs end and drops queued ones. It is idempotent. The caller holds control,
// and must let go of it before it waits for the clerk.
func (l *lun) stop() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		l.rules++
		close(l.jobs)
		close(l.ordered)
		close(l.requests)
		close(l.kick)
	}
	l.mu.Unlock()
	l.awaitInline()
	l.workers.Wait()
}

// save changes the record: durably first, then for the frames. The caller holds control.
func (l *lun) save(change func(*lunRecord)) error {
	rec := l.rec.Load().clone()
	change(rec)
	l.mu.Lock()
	rec.CacheEpoch = l.cacheEpoch
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return fmt.Errorf("%s: %w", l.addr(), ErrClosed)
	}
	if err := l.shelf.store.putLuns(rec); err != nil {
		return fmt.Errorf("%s: %w", l.addr(), err)
	}
	l.rec.Store(rec)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adopt(rec)
	if !l.offline || l.cacheEpoch != rec.CacheEpoch {
		return nil
	}
	l.offline, l.unmarked = false, false
	return l.shelf.unmark(l.uuid)
}

func (l *lun) addr() aoe.Addr { return aoe.Addr{Shelf: l.shelf.number, Slot: l.slot} }

// node is whose address mac is, "" if it is not admitted. The caller holds mu.
func (l *lun) node(mac aoe.MAC) string {
	for i := range l.senders {
		if l.senders[i].mac == mac {
			return l.senders[i].node
		}
	}
	return ""
}

// visible says whether the LUN exists for a sender at all. The caller holds mu.
func (l *lun) visible(mac aoe.MAC) bool {
	if l.closed {
		return false
	}
	if l.access == OpenAccess {
		return len(l.mask) == 0 || slices.Contains(l.mask, mac)
	}
	return l.node(mac) != ""
}

// mayRun judges a frame that is about to change or read data. The caller holds mu.
func (l *lun) mayRun(src aoe.MAC, s *session) aoe.ErrorCode {
	if l.access == OpenAccess {
		if len(l.reserved) > 0 && !slices.Contains(l.reserved, src) {
			return aoe.ErrorReserved
		}
		return aoe.NoError
	}
	if s == nil || l.sessions[s.epoch] != s || l.node(src) != s.node {
		return aoe.ErrorUnavailable
	}
	return aoe.NoError
}

// LUN is what there is to know about a LUN.
type LUN struct {
	UUID           string
	Slot           uint8
	Generation     string
	Name           string
	SizeBytes      int64
	AllocatedBytes int64
	Access         Access
	Admitted       []Admission
	Created        time.Time
}

// info copies what callers may see.
func (l *lun) info() (LUN, error) {
	used, err := l.allocated()
	if err != nil {
		return LUN{}, err
	}
	rec := l.rec.Load()
	return LUN{
		UUID: rec.UUID, Slot: rec.Slot, Generation: rec.Generation, Name: rec.Name, SizeBytes: rec.SizeBytes,
		AllocatedBytes: used, Access: rec.Access, Admitted: slices.Clone(rec.Admitted), Created: rec.Created,
	}, nil
}

// allocated is what the LUN takes on the disk in bytes, 0 once it is stopped.
func (l *lun) allocated() (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, nil
	}
	used, err := l.back.Allocated()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", l.addr(), err)
	}
	return used, nil
}
