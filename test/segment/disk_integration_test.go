//go:build integration

package segment

import (
	"crypto/rand"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/target"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// slowest is how long a write may take on a slow disk: long enough for writes to queue up in the target.
const slowest = 4 * time.Millisecond

// slowHost is a storage host whose disk takes its time for every write, so that there is always something queued or running. Its records are in memory.
type slowHost struct{ media slowMedia }

func (h *slowHost) Now() time.Time                        { return time.Now() }
func (h *slowHost) BootID() (string, error)               { return "boot", nil }
func (h *slowHost) Random(p []byte)                       { _, _ = rand.Read(p) } // never fails
func (h *slowHost) Open(dir string) (target.Media, error) { h.media.dir = dir; return &h.media, nil }
func (h *slowHost) Turns() target.Turns                   { return nil }

type slowMedia struct {
	dir     string
	mu      sync.Mutex
	records map[string]map[string][]byte
}

func (m *slowMedia) Records(bucket string, f func(key string, value []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(m.records[bucket])) {
		if err := f(key, m.records[bucket][key]); err != nil {
			return err
		}
	}
	return nil
}

func (m *slowMedia) Update(changes ...target.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records == nil {
		m.records = map[string]map[string][]byte{}
	}
	for _, c := range changes {
		if m.records[c.Bucket] == nil {
			m.records[c.Bucket] = map[string][]byte{}
		}
		if c.Value == nil {
			delete(m.records[c.Bucket], c.Key)
			continue
		}
		m.records[c.Bucket][c.Key] = slices.Clone(c.Value)
	}
	return nil
}

func (m *slowMedia) Create(name string, size int64) error {
	return os.WriteFile(filepath.Join(m.dir, name), make([]byte, size), 0o600)
}

func (m *slowMedia) File(name string, _ int64) (target.File, error) {
	f, err := os.OpenFile(filepath.Join(m.dir, name), os.O_RDWR, 0)
	return &slowFile{f}, err
}

func (m *slowMedia) Remove(name string) error             { return os.Remove(filepath.Join(m.dir, name)) }
func (m *slowMedia) Names() ([]string, error)             { return nil, nil }
func (m *slowMedia) Mark(string) error                    { return nil }
func (m *slowMedia) Unmark(string) error                  { return nil }
func (m *slowMedia) Marks() ([]string, error)             { return nil, nil }
func (m *slowMedia) Room() (total, free int64, err error) { return 1 << 30, 1 << 30, nil }
func (m *slowMedia) Close() error                         { return nil }

type slowFile struct{ f *os.File }

func (s *slowFile) WriteAt(p []byte, off int64, _ bool) error {
	time.Sleep(mathrand.N(slowest)) // this is what the disk is for
	_, err := s.f.WriteAt(p, off)
	return err
}

func (s *slowFile) ReadAt(p []byte, off int64) error {
	_, err := s.f.ReadAt(p, off)
	return err
}

// Cached implements target.File: everything needs the disk.
func (s *slowFile) Cached(t *uring.Transfer) bool {
	t.Err = syscall.EAGAIN
	return true
}

func (s *slowFile) Sync() error                { return nil }
func (s *slowFile) Discard(int64, int64) error { return nil }
func (s *slowFile) Trims() bool                { return false }
func (s *slowFile) Grow(n int64) error         { return s.f.Truncate(n) }
func (s *slowFile) Allocated() (int64, error)  { return 0, nil }
func (s *slowFile) Close() error               { return s.f.Close() }
