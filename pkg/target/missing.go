package target

import "github.com/aoe-csi/aoe-csi/pkg/uring"

// missing stands in for the bytes of a LUN whose file cannot be opened: its metadata stay, every access fails.
type missing struct {
	err error
}

// ReadAt implements File.
func (m missing) ReadAt([]byte, int64) error { return m.err }

// Cached implements File.
func (m missing) Cached(t *uring.Transfer) bool {
	t.Err = m.err
	return true
}

// WriteAt implements File.
func (m missing) WriteAt([]byte, int64, bool) error { return m.err }

// Sync implements File; an earlier process may have acknowledged writes.
func (m missing) Sync() error { return m.err }

// Discard implements File.
func (m missing) Discard(int64, int64) error { return m.err }

// Trims implements File.
func (m missing) Trims() bool { return false }

// Grow implements File.
func (m missing) Grow(int64) error { return m.err }

// Allocated implements File.
func (m missing) Allocated() (int64, error) { return 0, nil }

// Close implements File.
func (m missing) Close() error { return nil }
