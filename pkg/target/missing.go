package target

// missing stands in for the bytes of a LUN whose file cannot be opened: its metadata stay, every access fails.
type missing struct {
	err error
}

func (m missing) readAt([]byte, int64) error        { return m.err }
func (m missing) readCached([]byte, int64) bool     { return false }
func (m missing) writeAt([]byte, int64, bool) error { return m.err }
func (m missing) sync() error                       { return m.err } // an earlier process may have acknowledged writes
func (m missing) discard(int64, int64) error        { return m.err }
func (m missing) trims() bool                       { return false }
func (m missing) grow(int64) error                  { return m.err }
func (m missing) allocated() (int64, error)         { return 0, nil }
func (m missing) close() error                      { return nil }
