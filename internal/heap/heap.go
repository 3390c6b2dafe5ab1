// Package heap says how much a process allocates, so that "nothing per I/O" can be seen in one that runs.
package heap

import "runtime/metrics"

// Allocations is how many objects this process has allocated on Go's heap since it started. The runtime counts small ones when a span of
// them is full or is swept, so the latest few may be missing.
func Allocations() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
