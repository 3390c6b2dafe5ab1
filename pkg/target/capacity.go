package target

import "fmt"

// reservePercent of the file system stay free: metadata, and a file system that is nearly full is slow.
const reservePercent = 1

// Capacity is what a shelf has, in bytes.
type Capacity struct {
	TotalBytes int64
	// AvailableBytes is what new LUNs can take even if every LUN is written full.
	AvailableBytes int64
	MaxLUNBytes    int64
	FreeSlots      int
}

// Capacity measures now. LUN files are sparse: what they may still grow to is counted as taken.
func (s *Shelf) Capacity() (Capacity, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	return s.capacity()
}

// capacity is Capacity for who holds admin.
func (s *Shelf) capacity() (Capacity, error) {
	if s.closed.Load() {
		return Capacity{}, fmt.Errorf("capacity: %w", ErrClosed)
	}
	total, free, err := s.media.Room()
	if err != nil {
		return Capacity{}, fmt.Errorf("capacity of %s: %w", s.dir, err)
	}
	reserve := total / 100 * reservePercent
	available := free - reserve
	c := Capacity{TotalBytes: (total - reserve) / sizeUnit * sizeUnit, FreeSlots: maxSlots}
	for i := range s.slots {
		l := s.slots[i].Load()
		if l == nil {
			continue
		}
		c.FreeSlots--
		used, err := l.allocated()
		if err != nil {
			return Capacity{}, fmt.Errorf("capacity: %w", err)
		}
		available -= max(0, l.rec.Load().SizeBytes-used)
	}
	c.AvailableBytes = max(0, available/sizeUnit*sizeUnit)
	c.MaxLUNBytes = min(c.AvailableBytes, maxLUNBytes)
	if c.FreeSlots == 0 {
		c.MaxLUNBytes = 0
	}
	return c, nil
}

// reserve says whether a LUN of size bytes, more of them new, may exist. The caller holds admin.
func (s *Shelf) reserve(size, more int64) error {
	c, err := s.capacity()
	switch {
	case err != nil:
		return err
	case size > c.TotalBytes:
		return fmt.Errorf("%w: %d bytes asked, it has %d in all", ErrTooLarge, size, c.TotalBytes)
	case more > c.AvailableBytes:
		return fmt.Errorf("%w: %d more bytes asked, %d available", ErrNoSpace, more, c.AvailableBytes)
	}
	return nil
}
