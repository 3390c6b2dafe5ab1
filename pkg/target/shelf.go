package target

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
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

	bootID string                // of the running kernel, unless set by a test
	now    func() time.Time      // time.Now, unless set by a test
	wrap   func(backend) backend // nil, unless a test has disks fail or hang
}

// Shelf is an open directory of LUNs. Its methods may be called from any goroutine.
type Shelf struct {
	number uint16
	dir    string
	uuid   string
	store  *store
	lock   *os.File
	luns   *os.File // the directory of LUN files, for fsync
	now    func() time.Time
	wrap   func(backend) backend
	record *shelfRecord

	// admin is held while LUNs come and go.
	admin  sync.Mutex
	closed bool // guarded by admin
	slots  [maxSlots]atomic.Pointer[lun]

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
	s := &Shelf{dir: c.Dir, now: c.now, wrap: c.wrap, ports: make(map[*port]struct{})}
	if s.now == nil {
		s.now = time.Now
	}
	if c.bootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("open shelf: boot ID: %w", err)
		}
		c.bootID = strings.TrimSpace(string(id))
	}
	err := s.open(c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open shelf in %s: %w", c.Dir, err), s.release())
	}
	return s, nil
}

func (s *Shelf) open(c Config) (err error) {
	files := filepath.Join(c.Dir, "luns")
	if err = os.MkdirAll(files, 0o700); err != nil {
		return err
	}
	if s.lock, err = lockDir(c.Dir); err != nil {
		return err
	}
	if s.luns, err = os.Open(files); err != nil {
		return err
	}
	if s.store, err = openStore(c.Dir); err != nil {
		return err
	}
	if err = s.identify(c); err != nil {
		return err
	}
	if err = syncDir(c.Dir); err != nil {
		return err
	}
	return s.load(c.bootID)
}

// lockDir makes sure that no other process serves the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// identify reads the directory's number and UUID, or gives it both.
func (s *Shelf) identify(c Config) error {
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
		rec = &shelfRecord{Format: shelfFormat, Shelf: *c.Number, UUID: newUUID(), BootID: c.bootID, Clean: true}
		if err := s.store.putShelf(rec); err != nil {
			return err
		}
	case c.Number != nil && *c.Number != rec.Shelf:
		return fmt.Errorf("%w: it is shelf %d, not %d; LUNs cannot be moved to another number", ErrMismatch, rec.Shelf, *c.Number)
	}
	s.record, s.number, s.uuid = rec, rec.Shelf, rec.UUID
	return nil
}

// load finishes interrupted deletions, collects files that nothing points at, and starts the LUNs.
func (s *Shelf) load(bootID string) error {
	recs, err := s.store.luns()
	if err != nil {
		return err
	}
	lost := s.record.BootID != bootID && !s.record.Clean
	known := make(map[string]bool)
	live := recs[:0]
	for _, rec := range recs {
		if rec.State == lunDeleting {
			if err := s.erase(rec.UUID); err != nil {
				return err
			}
			continue
		}
		if lost {
			rec.CacheEpoch = newCacheEpoch(rec.CacheEpoch)
		}
		known[fileName(rec.UUID)] = true
		live = append(live, rec)
	}
	if lost && len(live) > 0 {
		klog.InfoS("The host went down with LUNs open: sessions from before it report lost flushes", "shelf", s.number, "luns", len(live))
		if err := s.store.putLuns(live...); err != nil {
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
	back, err := openFile(s.path(rec.UUID), rec.SizeBytes)
	if err != nil {
		klog.ErrorS(err, "LUN cannot be served", "shelf", s.number, "slot", rec.Slot, "generation", rec.Generation)
		s.adopt(rec, missing{err})
		return
	}
	s.adopt(rec, back)
}

// adopt makes a LUN answer at its slot.
func (s *Shelf) adopt(rec *lunRecord, back backend) *lun {
	if s.wrap != nil {
		back = s.wrap(back)
	}
	l := newLun(s, rec, back)
	l.start()
	s.slots[rec.Slot].Store(l)
	return l
}

// collect removes LUN files without a record: their creation or deletion was cut off.
func (s *Shelf) collect(known map[string]bool) error {
	names, err := s.luns.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if known[name] || !strings.HasSuffix(name, fileSuffix) {
			continue
		}
		klog.InfoS("Removing a LUN file that nothing points at", "shelf", s.number, "file", name)
		if err := removeFile(s.luns, filepath.Join(s.dir, "luns", name)); err != nil {
			return err
		}
	}
	return nil
}

const fileSuffix = ".img"

func fileName(uuid string) string { return uuid + fileSuffix }

func (s *Shelf) path(uuid string) string { return filepath.Join(s.dir, "luns", fileName(uuid)) }

// erase removes a LUN's bytes, then its record.
func (s *Shelf) erase(uuid string) error {
	if err := removeFile(s.luns, s.path(uuid)); err != nil {
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
	if s.closed {
		return nil
	}
	s.closed = true
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
	if err = l.back.sync(); err != nil {
		err = fmt.Errorf("%s: make data durable: %w", l.addr(), err)
		durable = false
	}
	if !durable {
		// The kernel tells of a loss once: a next process in the same boot would hear nothing. With a new epoch this LUN's loss is known,
		// and the others lost nothing.
		storeErr := l.renewCacheEpoch()
		durable = storeErr == nil
		err = errors.Join(err, storeErr)
	}
	return durable, errors.Join(err, l.back.close())
}

// renewCacheEpoch stores that acknowledged data may be gone, for the sessions of a later process.
func (l *lun) renewCacheEpoch() error {
	rec := l.rec.Load().clone()
	rec.CacheEpoch = newCacheEpoch(rec.CacheEpoch)
	return l.shelf.store.putLuns(rec)
}

// release closes what open opened.
func (s *Shelf) release() error {
	var err error
	if s.store != nil {
		err = s.store.close()
	}
	if s.luns != nil {
		err = errors.Join(err, s.luns.Close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// newUUID is a random UUID in its usual form.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
