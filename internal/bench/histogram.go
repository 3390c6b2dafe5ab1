package bench

import (
	"math/bits"
	"time"
)

// The buckets of a Histogram: subBuckets for each doubling, so that a value is off by 3 % at most.
const (
	subBits    = 4
	subBuckets = 1 << subBits
	buckets    = 40 * subBuckets
)

// Histogram counts durations of up to minutes. Adding allocates nothing.
type Histogram struct {
	counts [buckets]uint64
	n      uint64
	sum    time.Duration
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))]++
	h.n++
	h.sum += d
}

// bucketOf is exact below subBuckets; above, the bits behind the highest tell the bucket.
func bucketOf(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return min((shift+1)<<subBits|int(v>>shift)&(subBuckets-1), buckets-1)
}

// middle is the value that a bucket stands for.
func middle(bucket int) time.Duration {
	if bucket < subBuckets {
		return time.Duration(bucket)
	}
	shift := bucket>>subBits - 1
	low := uint64(subBuckets|bucket&(subBuckets-1)) << shift
	return time.Duration(low + 1<<shift/2)
}

// Merge adds all that another has.
func (h *Histogram) Merge(other *Histogram) {
	for i, c := range other.counts {
		h.counts[i] += c
	}
	h.n += other.n
	h.sum += other.sum
}

// Count is how many were added.
func (h *Histogram) Count() uint64 { return h.n }

// Mean is their mean, 0 without any.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n)
}

// Quantile is the value that a part q (0 to 1) of them does not exceed.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank, seen := uint64(q*float64(h.n-1)), uint64(0)
	for i, c := range h.counts {
		if seen += c; c > 0 && seen > rank {
			return middle(i)
		}
	}
	return 0
}
