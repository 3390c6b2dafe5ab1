package pool

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is one private mapping, outside the Go heap so that the collector neither scans nor moves with it.
type memory struct {
	bytes []byte
	// touch: the kernel, before Linux 5.14, cannot be asked for pages; they are written to instead.
	touch bool
}

// mapMemory sets aside address space of n bytes; pages come with populate.
func mapMemory(n int) (*memory, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	err = unix.Madvise(b[:1], unix.MADV_POPULATE_WRITE)
	return &memory{bytes: b, touch: errors.Is(err, unix.EINVAL)}, nil
}

// populate puts pages behind b, a part of the mapping, or says that there are none, which a plain page fault could only
// say with a signal.
func (m *memory) populate(b []byte) error {
	page := uintptr(os.Getpagesize())
	if m.touch {
		touch(b, int(page))
		return nil
	}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(m.bytes)))
	from := (uintptr(unsafe.Pointer(unsafe.SliceData(b))) - base) / page * page
	to := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - base + uintptr(len(b))
	to = min((to+page-1)/page*page, uintptr(len(m.bytes)))
	err := unix.Madvise(m.bytes[from:to], unix.MADV_POPULATE_WRITE)
	for err == unix.EINTR || err == unix.EAGAIN {
		err = unix.Madvise(m.bytes[from:to], unix.MADV_POPULATE_WRITE)
	}
	return err
}

// touch faults in the pages under b by writing to b alone: its first and last page may be a neighbour's, too.
func touch(b []byte, page int) {
	for i := 0; i < len(b); i += page {
		b[i] = 0
	}
	b[len(b)-1] = 0
}

func (m *memory) unmap() error {
	b := m.bytes
	m.bytes = nil
	if b == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(b))
}
