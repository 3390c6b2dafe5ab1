package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// ringBlock is what the kernel allocates at once; larger only if a frame does not fit.
	ringBlock = 64 << 10
	// ringHead is how much of a slot comes before a frame's network header, and more than what comes before its Ethernet header
	// (TPACKET2_HDRLEN and room for a hardware header, aligned).
	ringHead = 80
	// Of struct tpacket2_hdr: where things are.
	slotLen, slotSnapLen, slotMAC = 4, 8, 12
)

// ring is where the kernel puts received frames, so that reading them takes no system call and no second copy
// (TPACKET_V2, Documentation/networking/packet_mmap.rst). It fills slots in their order and drops frames while the next one has not been
// given back.
type ring struct {
	mem       []byte
	block     int // bytes
	slot      int // bytes
	longest   int // frame that is lent, bytes; slots are aligned and may hold more
	perBlock  int
	slots     int
	next      int // the first that has not been looked at
	lent      int // how many before it have not been given back
	truncated uint64
}

// newRing gives a socket a ring of about size bytes for frames of up to longest bytes. It must have none.
func newRing(fd, longest, size int) (*ring, error) {
	r := &ring{block: ringBlock, longest: longest, slot: (ringHead + longest + unix.TPACKET_ALIGNMENT - 1) &^ (unix.TPACKET_ALIGNMENT - 1)}
	for r.block < r.slot {
		r.block *= 2
	}
	r.perBlock = r.block / r.slot
	blocks := max(1, size/r.block)
	r.slots = blocks * r.perBlock
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("receive ring: %w", os.NewSyscallError("setsockopt", err))
	}
	if err := setRing(fd, unix.TpacketReq{
		Block_size: uint32(r.block), Block_nr: uint32(blocks), Frame_size: uint32(r.slot), Frame_nr: uint32(r.slots)}); err != nil {
		return nil, fmt.Errorf("receive ring of %d bytes: %w", blocks*r.block, err)
	}
	mem, err := unix.Mmap(fd, 0, blocks*r.block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map receive ring: %w", os.NewSyscallError("mmap", err)), setRing(fd, unix.TpacketReq{}))
	}
	r.mem = mem
	return r, nil
}

// setRing gives a socket a ring, or with a request of zeroes takes it away.
func setRing(fd int, r unix.TpacketReq) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &r))
}

// at returns a slot and its status.
func (r *ring) at(i int) ([]byte, *uint32) {
	from := i/r.perBlock*r.block + i%r.perBlock*r.slot
	s := r.mem[from : from+r.slot : from+r.slot]
	return s, (*uint32)(unsafe.Pointer(unsafe.SliceData(s)))
}

// receive lends frames until giveBack.
func (r *ring) receive(dst [][]byte) (n int) {
	for n < len(dst) && r.lent < r.slots {
		s, status := r.at(r.next)
		if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
			break
		}
		r.lent++
		if r.next++; r.next == r.slots {
			r.next = 0
		}
		snap := binary.NativeEndian.Uint32(s[slotSnapLen:])
		if snap < binary.NativeEndian.Uint32(s[slotLen:]) || int(snap) > r.longest {
			r.truncated++
			continue
		}
		mac := uint32(binary.NativeEndian.Uint16(s[slotMAC:]))
		dst[n] = s[mac : mac+snap : mac+snap]
		n++
	}
	return n
}

// giveBack ends the loan of all frames.
func (r *ring) giveBack() {
	i := r.next - r.lent
	if i < 0 {
		i += r.slots
	}
	for ; r.lent > 0; r.lent-- {
		_, status := r.at(i)
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
		if i++; i == r.slots {
			i = 0
		}
	}
}

// close unmaps the ring and takes it off the socket, unless that is closed (-1).
func (r *ring) close(fd int) error {
	err := os.NewSyscallError("munmap", unix.Munmap(r.mem))
	r.mem = nil
	if fd >= 0 && err == nil {
		err = setRing(fd, unix.TpacketReq{})
	}
	return err
}

// pending is the socket's error, which asking takes away; 0: none.
func pending(fd int) unix.Errno {
	var value, size int32 = 0, 4
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Errno(value)
}
