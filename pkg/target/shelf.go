package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// maxSlots is how many LUNs a shelf has: slots 0 to 254.
const maxSlots = int(aoe.MaxSlot) + 1

// Config says where a shelf is and which.
type Config struct {
	// Dir holds everything; it is made if it does not exist.
	Dir string
	// Number is the shelf's; nil takes the one that Dir remembers.
	Number *uint16

	// Host is nil for this machine.
	Host Host

	wrap func(File) File // nil, unless a test has disks fail or hang
}

// Shelf is an open directory of LUNs. Its methods may be called from any goroutine.
type Shelf struct {
	number uint16
	dir    string
	uuid   string
	host   Host
	turns  Turns // the host's
	media  Media
	store  *store
	wrap   func(File) File
	record *shelfRecord

	// admin is held while LUNs come and go.
	admin  sync.Locker
	closed atomic.Bool // changes under admin
	slots  [maxSlots]atomic.Pointer[lun]
	// vacated is when the last LUN of a slot went, or may have gone: frames to it may still be on their way. Guarded by admin.
	vacated [maxSlots]time.Time

	// portsMu guards ports.
	portsMu sync.Mutex
	ports   map[*port]struct{}

	counts  counters
	garbage throttle
	disk    throttle
}

// Open opens the shelf in a directory, finishes what a crash interrupted, and makes all LUNs ready. ErrMismatch: the
// directory belongs to another shelf number; ErrLocked: another process has it; ErrFormat: it was written by a newer version.
func Open(c Config) (*Shelf, error) {
	if c.Host == nil {
		c.Host = machine{}
	}
	s := &Shelf{dir: c.Dir, host: c.Host, turns: c.Host.Turns(), wrap: c.wrap, ports: make(map[*port]struct{})}
	s.admin = newLock(s.turns)
	if err := s.open(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open shelf in %s: %w", c.Dir, err), s.release())
	}
	return s, nil
}

func (s *Shelf) open(c Config) error {
	boot, err := s.host.BootID()
	if err != nil {
		return err
	}
	if s.media, err = s.host.Open(c.Dir); err != nil {
		return err
	}
	s.store = &store{media: s.media}
	if err := s.identify(c, boot); err != nil {
		return err
	}
	return s.load(boot)
}

// identify reads the directory's number and UUID, or gives it both.
func (s *Shelf) identify(c Config, bootID string) error {
	rec, err := s.store.shelf()
	if err != nil {
		return err
	}
	switch {
	case rec == nil && c.Number == nil:
		return fmt.Errorf("%w: a new directory needs a shelf number", ErrInvalid)
	case rec == nil:
		if *c.Number > aoe.MaxShelf {
			return fmt.Errorf("%w: shelf number %d, the largest is %d", ErrInvalid, *c.Number, aoe.MaxShelf)
		}
		rec = &shelfRecord{Format: shelfFormat, Shelf: *c.Number, UUID: s.newUUID(), BootID: bootID, Clean: true}
		if err := s.store.putShelf(rec); err != nil {
			return err
		}
		s.record, s.number, s.uuid = rec, rec.Shelf, rec.UUID
		return nil
	case c.Number != nil && *c.Number != rec.Shelf:
		return fmt.Errorf("%w: it is shelf %d, not %d; LUNs cannot be moved to another number", ErrMismatch, rec.Shelf, *c.Number)
	}
	s.record, s.number, s.uuid = rec, rec.Shelf, rec.UUID
	for slot := range s.vacated {
		s.vacated[slot] = s.host.Now() // an earlier process may have deleted a LUN just before it ended
	}
	return nil
}

// load finishes interrupted deletions, collects files that nothing points at, and starts the LUNs.
func (s *Shelf) load(bootID string) error {
	recs, err := s.store.luns()
	if err != nil {
		return err
	}
	lost := s.record.BootID != bootID && !s.record.Clean
	marks, err := s.media.Marks()
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	live := recs[:0]
	for _, rec := range recs {
		if rec.State == lunDeleting {
			if err := s.erase(rec.UUID); err != nil {
				return err
			}
			continue
		}
		if lost || slices.Contains(marks, rec.UUID) {
			rec.CacheEpoch = s.newCacheEpoch(rec.CacheEpoch)
		}
		known[rec.UUID] = true
		live = append(live, rec)
	}
	if (lost || len(marks) > 0) && len(live) > 0 {
		klog.InfoS("Acknowledged writes may be lost: flushes of older sessions fail", "shelf", s.number, "hostWentDown", lost, "failedFlushes", len(marks))
		if err := s.store.putLuns(live...); err != nil {
			return err
		}
	}
	for _, name := range marks {
		if err := s.unmark(name); err != nil {
			return err
		}
	}
	if err := s.collect(known); err != nil {
		return err
	}
	s.record = &shelfRecord{Format: shelfFormat, Shelf: s.number, UUID: s.uuid, BootID: bootID}
	if err := s.store.putShelf(s.record); err != nil {
		return err
	}
	for _, rec := range live {
		s.revive(rec)
	}
	return nil
}

// revive starts a LUN; one whose file is damaged is left out, with its slot taken, so that the others are served.
func (s *Shelf) revive(rec *lunRecord) {
	back, err := s.media.File(rec.UUID, rec.SizeBytes)
	if err != nil {
		klog.ErrorS(err, "LUN cannot be served", "shelf", s.number, "slot", rec.Slot, "generation", rec.Generation)
		s.adopt(rec, missing{err})
		return
	}
	s.adopt(rec, back)
}

// adopt makes a LUN answer at its slot.
func (s *Shelf) adopt(rec *lunRecord, back File) *lun {
	if s.wrap != nil {
		back = s.wrap(back)
	}
	l := newLun(s, rec, back)
	l.start()
	s.slots[rec.Slot].Store(l)
	return l
}

// unmark forgets a loss that is stored.
func (s *Shelf) unmark(uuid string) error {
	if err := s.media.Unmark(uuid); err != nil {
		return fmt.Errorf("shelf %d: %w", s.number, err)
	}
	return nil
}

// collect removes LUN files without a record: their creation or deletion was cut off.
func (s *Shelf) collect(known map[string]bool) error {
	names, err := s.media.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		klog.InfoS("Removing a LUN file that nothing points at", "shelf", s.number, "file", name)
		if err := s.media.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// erase removes a LUN's bytes, then its record.
func (s *Shelf) erase(uuid string) error {
	if err := s.media.Remove(uuid); err != nil {
		return err
	}
	return s.store.deleteLun(uuid)
}

// at is the LUN at a slot, nil if there is none.
func (s *Shelf) at(slot uint8) *lun {
	if int(slot) >= maxSlots {
		return nil
	}
	return s.slots[slot].Load()
}

// Number is the shelf's number.
func (s *Shelf) Number() uint16 { return s.number }

// UUID is that of the directory.
func (s *Shelf) UUID() string { return s.uuid }

// Close stops all LUNs, makes their data durable and lets go of the directory. End every Serve first. It is idempotent.
func (s *Shelf) Close() error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.closed.Load() {
		return nil
	}
	s.closed.Store(true)
	var err error
	clean := true
	for i := range s.slots {
		l := s.slots[i].Swap(nil)
		if l == nil {
			continue
		}
		durable, closeErr := l.close()
		clean = clean && durable
		err = errors.Join(err, closeErr)
	}
	if clean {
		rec := *s.record
		rec.Clean = true
		err = errors.Join(err, s.store.putShelf(&rec))
	}
	return errors.Join(err, s.release())
}

// close stops the LUN; durable says that nothing acknowledged can be lost any more.
func (l *lun) close() (durable bool, err error) {
	l.control.Lock()
	l.stop()
	l.mu.Lock()
	durable = !l.offline
	l.mu.Unlock()
	l.control.Unlock()
	l.clerk.Wait()
	if err = l.back.Sync(); err != nil {
		// The mark first: the process may be killed before the epoch is stored.
		err = errors.Join(fmt.Errorf("%s: make data durable: %w", l.addr(), err), l.shelf.media.Mark(l.uuid))
		durable = false
	}
	if !durable {
		// The kernel tells of a loss once: a next process in the same boot would hear nothing. With a new epoch this LUN's loss is known,
		// and the others lost nothing.
		storeErr := l.renewCacheEpoch()
		durable = storeErr == nil
		err = errors.Join(err, storeErr)
	}
	return durable, errors.Join(err, l.back.Close())
}

// renewCacheEpoch stores that acknowledged data may be gone, for the sessions of a later process.
func (l *lun) renewCacheEpoch() error {
	rec := l.rec.Load().clone()
	rec.CacheEpoch = l.shelf.newCacheEpoch(rec.CacheEpoch)
	if err := l.shelf.store.putLuns(rec); err != nil {
		return err
	}
	return l.shelf.unmark(l.uuid)
}

// release closes what open opened.
func (s *Shelf) release() error {
	if s.media == nil {
		return nil
	}
	return s.media.Close()
}

// newUUID is a random UUID in its usual form.
func (s *Shelf) newUUID() string {
	var b [16]byte
	s.host.Random(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// newCacheEpoch differs from all that were before, also from those of a directory that was restored from a copy.
func (s *Shelf) newCacheEpoch(old uint64) uint64 {
	for {
		var b [8]byte
		s.host.Random(b[:])
		if e := binary.BigEndian.Uint64(b[:]); e != 0 && e != old {
			return e
		}
	}
}
