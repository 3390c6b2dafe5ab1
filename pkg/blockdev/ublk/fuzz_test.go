package ublk

import (
	"encoding/binary"
	"math"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// FuzzDescriptor: whatever the kernel says of a request, it is handed on as what it is, or answered at once.
func FuzzDescriptor(f *testing.F) {
	f.Add(uint32(opRead), uint32(8), uint64(80), uint8(3))
	f.Add(uint32(opWrite|requestFUA), uint32(1), uint64(math.MaxUint64), uint8(0))
	f.Add(uint32(opWriteZeroes|1<<15), uint32(math.MaxUint32), uint64(0), uint8(7))
	f.Add(uint32(99), uint32(0), uint64(0), uint8(1))
	f.Fuzz(func(t *testing.T, flags, sectors uint32, first uint64, tag uint8) {
		const depth = 8
		descriptors, entries := make([]byte, depth*descriptorSize), make([]uint64, depth*128/8)
		q := &queue{slots: make([]slot, depth), ring: &ring{
			stride: 128, entries: unsafe.Slice((*byte)(unsafe.Pointer(&entries[0])), depth*128), sqMask: depth - 1, sqHead: new(atomic.Uint32),
		}}
		for i := range q.slots {
			q.slots[i].q, q.slots[i].req.Index = q, i
		}
		q.descriptors.Store(&descriptors[0])
		d := descriptors[int(tag%depth)*descriptorSize:]
		binary.NativeEndian.PutUint32(d, flags)
		binary.NativeEndian.PutUint32(d[4:], sectors)
		binary.NativeEndian.PutUint64(d[8:], first)
		got := q.arrived(nil, &q.slots[tag%depth])
		if len(got)+int(q.ring.tail) != 1 {
			t.Fatalf("%d requests and %d answers", len(got), q.ring.tail)
		}
		for _, r := range got {
			data := r.Op == blockdev.OpRead || r.Op == blockdev.OpWrite
			if r.Index != int(tag%depth) || data != (r.Pages != nil) || r.Op != blockdev.OpFlush && r.Length != sectors*512 {
				t.Fatalf("%+v of % x", r, d[:descriptorSize])
			}
			q.Complete(r, 0)
		}
		if q.ring.tail != 1 {
			t.Fatalf("%d answers", q.ring.tail)
		}
	})
}
