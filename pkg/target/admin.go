package target

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// sizeUnit is what sizes are rounded up to, in bytes.
	sizeUnit = 4096
	// maxLUNBytes is what 48 bits of LBA and a signed file offset can address.
	maxLUNBytes = int64(1) << 56
	// maxName is how long a LUN's name for people may be.
	maxName = 253
	// generationLen is the length of a generation in characters.
	generationLen = 16
)

// CreateRequest describes a LUN to be made.
type CreateRequest struct {
	Slot       uint8
	Generation string // 16 letters and digits; the LUN's identity
	Name       string
	SizeBytes  int64 // rounded up to 4096
	Access     Access
}

func (r *CreateRequest) check() error {
	switch {
	case r.Slot > aoe.MaxSlot:
		return fmt.Errorf("%w: slot %d, the largest is %d", ErrInvalid, r.Slot, aoe.MaxSlot)
	case !validGeneration(r.Generation):
		return fmt.Errorf("%w: generation %q is not %d letters and digits", ErrInvalid, r.Generation, generationLen)
	case len(r.Name) > maxName:
		return fmt.Errorf("%w: name of %d bytes, the most is %d", ErrInvalid, len(r.Name), maxName)
	case r.SizeBytes <= 0:
		return fmt.Errorf("%w: size %d", ErrInvalid, r.SizeBytes)
	case r.SizeBytes > maxLUNBytes:
		return fmt.Errorf("%w: size %d, the most is %d", ErrTooLarge, r.SizeBytes, maxLUNBytes)
	case r.Access != ManagedAccess && r.Access != OpenAccess:
		return fmt.Errorf("%w: access %d", ErrInvalid, r.Access)
	}
	return nil
}

func validGeneration(g string) bool {
	if len(g) != generationLen {
		return false
	}
	for _, c := range []byte(g) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

func roundUp(n int64) int64 { return (n + sizeUnit - 1) / sizeUnit * sizeUnit }

// Create makes a LUN of zeroes, or finds it already made: same slot, generation, size and access. It is durable when Create
// returns. Errors: ErrInvalid, ErrExists, ErrTooLarge, ErrNoSpace, ErrBusy.
func (s *Shelf) Create(ctx context.Context, r CreateRequest) (LUN, error) {
	if err := r.check(); err != nil {
		return LUN{}, fmt.Errorf("create LUN: %w", err)
	}
	r.SizeBytes = roundUp(r.SizeBytes)
	addr := aoe.Addr{Shelf: s.number, Slot: r.Slot}
	s.admin.Lock()
	defer s.admin.Unlock()
	if err := ctx.Err(); err != nil { // the caller left while others were served
		return LUN{}, fmt.Errorf("create LUN %s: %w", addr, err)
	}
	l, err := s.existing(r)
	if err != nil {
		return LUN{}, fmt.Errorf("create LUN %s: %w", addr, err)
	}
	if l == nil {
		if l, err = s.create(r); err != nil {
			return LUN{}, fmt.Errorf("create LUN %s: %w", addr, err)
		}
		klog.InfoS("LUN created", "lun", addr, "generation", r.Generation, "name", r.Name, "size", r.SizeBytes, "access", r.Access.String())
		s.announce(l)
	}
	return l.info()
}

// existing is the LUN that a repeated Create means; nil if there is none, ErrExists if it is not the same. The caller holds admin.
func (s *Shelf) existing(r CreateRequest) (*lun, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	for i := range s.slots {
		l := s.slots[i].Load()
		if l != nil && l.generation == r.Generation && l.slot != r.Slot {
			return nil, fmt.Errorf("%w: generation %s is at slot %d", ErrExists, r.Generation, l.slot)
		}
	}
	l := s.at(r.Slot)
	if l == nil {
		return nil, nil
	}
	rec := l.rec.Load()
	switch {
	case l.generation != r.Generation:
		return nil, fmt.Errorf("%w by generation %s", ErrExists, l.generation)
	case rec.State == lunDeleting:
		return nil, fmt.Errorf("%w: it is being deleted", ErrBusy)
	case rec.SizeBytes != r.SizeBytes:
		return nil, fmt.Errorf("%w by the same generation with %d bytes, not %d", ErrExists, rec.SizeBytes, r.SizeBytes)
	case l.access != r.Access:
		return nil, fmt.Errorf("%w by the same generation with access %s", ErrExists, l.access)
	}
	return l, nil
}

// create makes file and record, in this order. The caller holds admin.
func (s *Shelf) create(r CreateRequest) (*lun, error) {
	if err := s.reserve(r.SizeBytes, r.SizeBytes); err != nil {
		return nil, err
	}
	rec := &lunRecord{
		Format: lunFormat, UUID: s.newUUID(), Slot: r.Slot, Generation: r.Generation, Name: r.Name, SizeBytes: r.SizeBytes,
		Access: r.Access, State: lunReady, Created: s.host.Now().UTC().Truncate(time.Second), CacheEpoch: s.newCacheEpoch(0),
		Config: identity(r.Generation),
	}
	if err := s.media.Create(rec.UUID, r.SizeBytes); err != nil {
		if errors.Is(err, unix.EFBIG) {
			return nil, fmt.Errorf("%w: %w", ErrTooLarge, err)
		}
		return nil, err
	}
	back, err := s.media.File(rec.UUID, r.SizeBytes)
	if err != nil {
		return nil, errors.Join(err, s.media.Remove(rec.UUID))
	}
	if err := s.store.putLuns(rec); err != nil {
		return nil, errors.Join(err, back.Close(), s.media.Remove(rec.UUID))
	}
	l := s.adopt(rec, back)
	l.rest(s.vacated[r.Slot])
	return l, nil
}

// find is the LUN with this identity at this slot. The returned LUN's control is held by the caller.
func (s *Shelf) find(slot uint8, generation string) (*lun, error) {
	l := s.at(slot)
	if l != nil {
		l.control.Lock()
		if l.is(generation) {
			return l, nil
		}
		l.control.Unlock()
	}
	return nil, s.notFound(slot, generation)
}

// Get returns what there is to know about a LUN. ErrNotFound also if the slot has another generation.
func (s *Shelf) Get(slot uint8, generation string) (LUN, error) {
	l := s.at(slot)
	if l == nil || !l.is(generation) {
		return LUN{}, s.notFound(slot, generation)
	}
	return l.info()
}

// is says whether the LUN has this identity and is not going.
func (l *lun) is(generation string) bool {
	return l.generation == generation && l.rec.Load().State != lunDeleting
}

// notFound says that there is no such LUN, which callers may take for success: never of a shelf that is going.
func (s *Shelf) notFound(slot uint8, generation string) error {
	if s.closed.Load() {
		return ErrClosed
	}
	return fmt.Errorf("%s-%s: %w", aoe.Addr{Shelf: s.number, Slot: slot}, generation, ErrNotFound)
}

// List returns up to limit LUNs in the order of slots, from slot on; next is where to go on, -1 at the end.
func (s *Shelf) List(from, limit int) (list []LUN, next int, err error) {
	for slot := max(from, 0); slot < maxSlots; slot++ {
		l := s.at(uint8(slot))
		if l == nil || l.rec.Load().State == lunDeleting {
			continue
		}
		if len(list) == limit {
			return list, slot, nil
		}
		info, err := l.info()
		if err != nil {
			return nil, -1, err
		}
		list = append(list, info)
	}
	return list, -1, nil
}

// Delete removes a LUN and its bytes for good. An absent one, or another generation in the slot, is success; ErrAdmitted while
// a node may use it. When ctx ends before running jobs do, it is ErrBusy and goes on where it was when repeated.
func (s *Shelf) Delete(ctx context.Context, slot uint8, generation string) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.closed.Load() {
		return fmt.Errorf("delete LUN: %w", ErrClosed)
	}
	l := s.at(slot)
	if l == nil || l.generation != generation {
		return nil
	}
	l.control.Lock()
	if len(l.rec.Load().Admitted) > 0 {
		node := l.rec.Load().Admitted[0].Node
		l.control.Unlock()
		return fmt.Errorf("delete LUN %s: %w: %s", l.addr(), ErrAdmitted, node)
	}
	err := l.retire(ctx)
	l.control.Unlock()
	if err != nil {
		return fmt.Errorf("delete LUN %s: %w", l.addr(), err)
	}
	l.clerk.Wait()
	if err := l.back.Close(); err != nil {
		klog.ErrorS(err, "Closing a deleted LUN's file", "lun", l.addr())
	}
	if err := s.erase(l.uuid); err != nil {
		return fmt.Errorf("delete LUN %s: %w", l.addr(), err)
	}
	s.slots[slot].Store(nil)
	s.vacated[slot] = s.host.Now()
	klog.InfoS("LUN deleted", "lun", l.addr(), "generation", generation)
	return nil
}

// retire records that the LUN is going and stops it. The caller holds control.
func (l *lun) retire(ctx context.Context) error {
	if l.rec.Load().State != lunDeleting {
		if err := l.save(func(rec *lunRecord) { rec.State = lunDeleting }); err != nil {
			return err
		}
	}
	if err := l.drain(ctx); err != nil {
		return fmt.Errorf("%w: older requests still run: %w", ErrBusy, err)
	}
	l.stop()
	return nil
}

// Grow makes a LUN at least size bytes long, also while it is in use: when Grow returns, IDENTIFY says so. A LUN that is as large
// already stays as it is. Errors: ErrNotFound, ErrInvalid, ErrTooLarge, ErrNoSpace.
func (s *Shelf) Grow(slot uint8, generation string, size int64) (LUN, error) {
	switch {
	case size <= 0:
		return LUN{}, fmt.Errorf("grow LUN: %w: size %d", ErrInvalid, size)
	case size > maxLUNBytes:
		return LUN{}, fmt.Errorf("grow LUN: %w: size %d, the most is %d", ErrTooLarge, size, maxLUNBytes)
	}
	size = roundUp(size)
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.closed.Load() {
		return LUN{}, fmt.Errorf("grow LUN: %w", ErrClosed)
	}
	l, err := s.find(slot, generation)
	if err != nil {
		return LUN{}, fmt.Errorf("grow LUN: %w", err)
	}
	defer l.control.Unlock()
	if size > l.rec.Load().SizeBytes {
		err := s.reserve(size, size-l.rec.Load().SizeBytes)
		if err == nil {
			err = l.growFile(size)
		}
		if err == nil {
			err = l.save(func(rec *lunRecord) { rec.SizeBytes = size })
		}
		if err != nil {
			return LUN{}, fmt.Errorf("grow LUN %s: %w", l.addr(), err)
		}
		klog.InfoS("LUN grown", "lun", l.addr(), "generation", generation, "size", size)
		s.announce(l)
	}
	return l.info()
}

// growFile makes the file longer. Its fsync may be the one that hears of a write that was lost, so it counts as a flush.
func (l *lun) growFile(size int64) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	err := l.back.Grow(size)
	if errors.Is(err, ErrNotDurable) {
		l.loseCache(err)
	}
	return err
}
