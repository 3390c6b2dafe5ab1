package target

// missing stands in for the bytes of a LUN whose file cannot be opened: its metadata stay, every access fails.
type missing struct {
	err error
}

func (m missing) ReadAt([]byte, int64) error        { return m.err }
func (m missing) ReadCached([]byte, int64) bool     { return false }
func (m missing) WriteAt([]byte, int64, bool) error { return m.err }
func (m missing) Sync() error                       { return m.err } // an earlier process may have acknowledged writes
func (m missing) Discard(int64, int64) error        { return m.err }
func (m missing) Trims() bool                       { return false }
func (m missing) Grow(int64) error                  { return m.err }
func (m missing) Allocated() (int64, error)         { return 0, nil }
func (m missing) Close() error                      { return nil }
