//go:build !invariants && !race

package initiator

// checked costs a walk over all entries per call, too much for a data path.
const checked = false
