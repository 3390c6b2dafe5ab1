//go:build invariants || race

package pool

// poisonFreed makes a free frame's bytes worthless at once, so that a test sees who still reads them.
const poisonFreed = true
