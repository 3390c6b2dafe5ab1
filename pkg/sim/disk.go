package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aoe-csi/aoe-csi/pkg/target"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

var (
	errDead = errors.New("simulated process is dead")
	errDisk = errors.New("simulated disk error")
)

// disk is what of a storage host outlives its processes: records that are durable at once, marks that live as long as the host is up,
// and files with a page cache.
type disk struct {
	sim     *Sim
	records map[string]map[string][]byte
	marks   map[string]bool
	files   map[string]*file
	// failSync has the next fdatasync of a file with dirty pages lose some of them.
	failSync bool
	// failUpdates is how many updates of records fail.
	failUpdates int
}

// file is the bytes of a LUN: as the page cache has them, and as they are after a loss of power.
type file struct {
	name    string
	cache   []byte
	durable []byte
	dirty   []bool // per sector
	removed bool
}

func newDisk(s *Sim) *disk {
	return &disk{sim: s, records: map[string]map[string][]byte{}, marks: map[string]bool{}, files: map[string]*file{}}
}

// cutPower loses what is not durable, but for what chance had written in time.
func (d *disk) cutPower() {
	clear(d.marks)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		d.files[name].lose(d.sim)
	}
}

// lose has each dirty sector written or forgotten.
func (f *file) lose(s *Sim) {
	for i, dirty := range f.dirty {
		if !dirty {
			continue
		}
		f.dirty[i] = false
		if s.dice.IntN(2) == 0 {
			copy(f.sector(f.durable, i), f.sector(f.cache, i))
		} else {
			copy(f.sector(f.cache, i), f.sector(f.durable, i))
		}
	}
	s.model.lost(f)
}

func (f *file) sector(of []byte, i int) []byte { return of[i*sectorSize : (i+1)*sectorSize] }

// sync writes the dirty sectors.
func (f *file) sync() {
	for i, dirty := range f.dirty {
		if dirty {
			copy(f.sector(f.durable, i), f.sector(f.cache, i))
			f.dirty[i] = false
		}
	}
}

// media is the disk as one process sees it; it implements target.Media. Every access takes time, in which the process may die.
type media struct {
	disk *disk
	life *life
}

// Records implements target.Media.
func (m *media) Records(bucket string, f func(key string, value []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(m.disk.records[bucket])) {
		if err := f(key, m.disk.records[bucket][key]); err != nil {
			return err
		}
	}
	return nil
}

// Update implements target.Media.
func (m *media) Update(changes ...target.Change) error {
	if err := m.life.pause(); err != nil {
		return err
	}
	if m.disk.failUpdates > 0 {
		m.disk.failUpdates--
		return errDisk
	}
	for _, c := range changes {
		bucket := m.disk.records[c.Bucket]
		if bucket == nil {
			bucket = map[string][]byte{}
			m.disk.records[c.Bucket] = bucket
		}
		if c.Value == nil {
			delete(bucket, c.Key)
		} else {
			bucket[c.Key] = c.Value
		}
	}
	return m.life.pause()
}

// Create implements target.Media.
func (m *media) Create(name string, size int64) error {
	if err := m.life.pause(); err != nil {
		return err
	}
	if m.disk.files[name] != nil {
		return fmt.Errorf("file %s exists", name)
	}
	m.disk.files[name] = &file{name: name, cache: make([]byte, size), durable: make([]byte, size), dirty: make([]bool, size/sectorSize)}
	return m.life.pause()
}

// File implements target.Media.
func (m *media) File(name string, size int64) (target.File, error) {
	f := m.disk.files[name]
	if f == nil || int64(len(f.cache)) < size {
		return nil, fmt.Errorf("no file %s of %d bytes", name, size)
	}
	return &handle{file: f, life: m.life, disk: m.disk}, nil
}

// Remove implements target.Media.
func (m *media) Remove(name string) error {
	if err := m.life.pause(); err != nil {
		return err
	}
	if f := m.disk.files[name]; f != nil {
		f.removed = true
	}
	delete(m.disk.files, name)
	delete(m.disk.marks, name)
	return m.life.pause()
}

// Names implements target.Media.
func (m *media) Names() ([]string, error) { return slices.Sorted(maps.Keys(m.disk.files)), nil }

// Mark implements target.Media.
func (m *media) Mark(name string) error {
	if m.life.dead {
		return errDead
	}
	m.disk.marks[name] = true
	return nil
}

// Unmark implements target.Media.
func (m *media) Unmark(name string) error {
	if m.life.dead {
		return errDead
	}
	delete(m.disk.marks, name)
	return nil
}

// Marks implements target.Media.
func (m *media) Marks() ([]string, error) { return slices.Sorted(maps.Keys(m.disk.marks)), nil }

// Room implements target.Media.
func (m *media) Room() (total, free int64, err error) { return 1 << 40, 1 << 40, nil }

// Close implements target.Media.
func (m *media) Close() error { return nil }

// handle is an open file; it implements target.File.
type handle struct {
	file *file
	life *life
	disk *disk
}

// ReadAt implements target.File.
func (h *handle) ReadAt(p []byte, off int64) error {
	if err := h.life.pause(); err != nil {
		return err
	}
	copy(p, h.file.cache[off:])
	return h.life.pause()
}

// misses says whether I/O has to wait for the disk.
func (l *life) misses() bool { return l.dead || l.sim.dice.Float64() < l.sim.plan.uncached }

// Cached implements target.File.
func (h *handle) Cached(t *uring.Transfer) bool {
	switch {
	case h.life.misses():
		t.Err = errDisk
	case t.Write:
		h.write(t.Data, t.Off, false)
	default:
		copy(t.Data, h.file.cache[t.Off:])
	}
	return true
}

// WriteAt implements target.File.
func (h *handle) WriteAt(p []byte, off int64, durable bool) error {
	if err := h.life.pause(); err != nil {
		return err
	}
	if durable && h.disk.failSync {
		return h.syncFails()
	}
	h.write(p, off, durable)
	return h.life.pause()
}

func (h *handle) write(p []byte, off int64, durable bool) {
	h.life.sim.model.applied(h.file, p, int(off/sectorSize))
	copy(h.file.cache[off:], p)
	for i := range len(p) / sectorSize {
		h.file.dirty[int(off/sectorSize)+i] = !durable
	}
	if durable {
		copy(h.file.durable[off:], p)
	}
}

// Sync implements target.File.
func (h *handle) Sync() error {
	if err := h.life.pause(); err != nil {
		return err
	}
	if h.disk.failSync {
		return h.syncFails()
	}
	h.file.sync()
	return h.life.pause()
}

// syncFails loses pages if there are some to lose: the kernel tells of it once and takes them for written afterwards.
func (h *handle) syncFails() error {
	h.disk.failSync = false
	h.life.sim.tracef("disk: fdatasync of %.8s fails", h.file.name)
	h.file.lose(h.life.sim)
	h.life.sim.dieSoon(h.life)
	return errDisk
}

// Discard implements target.File.
func (h *handle) Discard(off, n int64) error {
	if err := h.life.pause(); err != nil {
		return err
	}
	h.life.sim.model.discarded(h.file, int(off/sectorSize), int(n/sectorSize))
	clear(h.file.cache[off : off+n])
	for i := range int(n / sectorSize) {
		h.file.dirty[int(off/sectorSize)+i] = true
	}
	return h.life.pause()
}

// Trims implements target.File.
func (h *handle) Trims() bool { return true }

// Grow implements target.File.
func (h *handle) Grow(int64) error { return errDisk }

// Allocated implements target.File.
func (h *handle) Allocated() (int64, error) { return int64(len(h.file.cache)), nil }

// Close implements target.File.
func (h *handle) Close() error { return nil }
