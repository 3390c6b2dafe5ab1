package nbd

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// pageBytes is the grain of a region; requests are mostly of one page.
const pageBytes = 4096

// region lends runs of pages out of memory that was mapped and touched when the device was made, so that no request
// ever waits for memory that the kernel might have to write dirty pages through this very device to get. When no
// run is long enough, the caller reads no further until one comes back. One thread owns it.
type region struct {
	mem  []byte
	used []uint64 // one bit a page
	free int      // pages
}

// newRegion maps bytes of memory, rounded up to 64 pages.
func newRegion(bytes int) (*region, error) {
	const grain = 64 * pageBytes
	bytes = (bytes + grain - 1) / grain * grain
	mem, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of request memory: %w", bytes, err)
	}
	return &region{mem: mem, used: make([]uint64, bytes/grain), free: bytes / pageBytes}, nil
}

// capacity is the longest request that can ever be held, in bytes.
func (r *region) capacity() int { return len(r.mem) }

// alloc lends length bytes and says at which page they begin; ok is false when no run is free now.
func (r *region) alloc(length int) (data []byte, page int, ok bool) {
	n := (length + pageBytes - 1) / pageBytes
	if n > r.free {
		return nil, 0, false
	}
	page = r.find(n)
	if page < 0 {
		return nil, 0, false
	}
	r.mark(page, n)
	r.free -= n
	start := page * pageBytes
	return r.mem[start : start+length : start+length], page, true
}

// release takes back what alloc lent.
func (r *region) release(page, length int) {
	n := (length + pageBytes - 1) / pageBytes
	r.mark(page, n)
	r.free += n
}

// find returns the first page of a run of n free ones, or -1.
func (r *region) find(n int) int {
	run := 0
	for w, word := range r.used {
		for bit := 0; bit < 64; {
			rest := word >> bit
			if rest&1 == 1 {
				run = 0
				bit += bits.TrailingZeros64(^rest)
				continue
			}
			zeros := min(bits.TrailingZeros64(rest), 64-bit)
			if run+zeros >= n {
				return w*64 + bit - run
			}
			run += zeros
			bit += zeros
		}
	}
	return -1
}

// mark flips n pages from page on.
func (r *region) mark(page, n int) {
	for n > 0 {
		bit := page % 64
		count := min(64-bit, n)
		r.used[page/64] ^= (^uint64(0) >> (64 - count)) << bit
		page += count
		n -= count
	}
}

// close unmaps the memory; idempotent.
func (r *region) close() error {
	if r.mem == nil {
		return nil
	}
	err := unix.Munmap(r.mem)
	r.mem, r.used, r.free = nil, nil, 0
	return err
}
