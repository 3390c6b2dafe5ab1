//go:build !invariants && !race

package pool

// poisonFreed costs a write of the whole frame, too much for a data path.
const poisonFreed = false
