package ublk

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// FuzzDescriptor: whatever the kernel says of a request, it is handed on as what it is, or answered at once.
func FuzzDescriptor(f *testing.F) {
	f.Add(uint32(opRead), uint32(8), uint64(80), uint8(3))
	f.Add(uint32(opWrite|requestFUA), uint32(1), uint64(math.MaxUint64), uint8(0))
	f.Add(uint32(opWriteZeroes|1<<15), uint32(math.MaxUint32), uint64(0), uint8(7))
	f.Add(uint32(99), uint32(0), uint64(0), uint8(1))
	const depth = 8
	ring, err := uring.New(depth, uring.SetupDisabled)
	if err != nil {
		f.Skipf("no io_uring on this machine: %v", err)
	}
	f.Cleanup(func() {
		if err := ring.Close(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, flags, sectors uint32, first uint64, tag uint8) {
		descriptors := make([]byte, depth*descriptorSize)
		q := &queue{slots: make([]slot, depth), ring: ring}
		defer ring.TakeBack()
		for i := range q.slots {
			q.slots[i].q, q.slots[i].req.Index = q, i
		}
		q.descriptors.Store(&descriptors[0])
		d := descriptors[int(tag%depth)*descriptorSize:]
		binary.NativeEndian.PutUint32(d, flags)
		binary.NativeEndian.PutUint32(d[4:], sectors)
		binary.NativeEndian.PutUint64(d[8:], first)
		got := q.arrived(nil, &q.slots[tag%depth])
		if len(got)+ring.Waiting() != 1 {
			t.Fatalf("%d requests and %d answers", len(got), ring.Waiting())
		}
		for _, r := range got {
			data := r.Op == blockdev.OpRead || r.Op == blockdev.OpWrite
			if r.Index != int(tag%depth) || data != (r.Pages != nil) || r.Op != blockdev.OpFlush && r.Length != sectors*512 {
				t.Fatalf("%+v of % x", r, d[:descriptorSize])
			}
			q.Complete(r, 0)
		}
		if ring.Waiting() != 1 {
			t.Fatalf("%d answers", ring.Waiting())
		}
	})
}
