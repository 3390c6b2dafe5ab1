package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func TestCreate(t *testing.T) {
	ctx := context.Background()
	base := CreateRequest{Slot: 3, Generation: testGen, Name: "test", SizeBytes: 1 << 20}
	for _, test := range []struct {
		name   string
		change func(*CreateRequest)
		want   error
	}{
		{"again", func(*CreateRequest) {}, nil},
		{"again, size rounded up", func(r *CreateRequest) { r.SizeBytes-- }, nil},
		{"again, other name", func(r *CreateRequest) { r.Name = "other" }, nil},
		{"other size", func(r *CreateRequest) { r.SizeBytes++ }, ErrExists},
		{"other generation", func(r *CreateRequest) { r.Generation = otherGen }, ErrExists},
		{"other access", func(r *CreateRequest) { r.Access = OpenAccess }, ErrExists},
		{"other slot", func(r *CreateRequest) { r.Slot = 4 }, ErrExists},
		{"slot 255", func(r *CreateRequest) { r.Slot = 255 }, ErrInvalid},
		{"size 0", func(r *CreateRequest) { r.SizeBytes = 0 }, ErrInvalid},
		{"negative size", func(r *CreateRequest) { r.SizeBytes = -1 }, ErrInvalid},
		{"short generation", func(r *CreateRequest) { r.Generation = "abc" }, ErrInvalid},
		{"generation with a slash", func(r *CreateRequest) { r.Generation = "../etc/passwd/xy" }, ErrInvalid},
		{"unknown access", func(r *CreateRequest) { r.Access = 9 }, ErrInvalid},
		{"larger than any disk", func(r *CreateRequest) { r.Slot, r.Generation, r.SizeBytes = 5, otherGen, maxLUNBytes+1 }, ErrTooLarge},
		{"larger than the shelf", func(r *CreateRequest) { r.Slot, r.Generation, r.SizeBytes = 5, otherGen, 1<<55 }, ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			first := r.lun(ManagedAccess)
			request := base
			test.change(&request)
			l, err := r.shelf.Create(ctx, request)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if test.want == nil && l.UUID != first.UUID {
				t.Fatal("made a second LUN")
			}
			if list, next, err := r.shelf.List(0, 10); len(list) != 1 || next != -1 || err != nil {
				t.Fatalf("%d LUNs, %v", len(list), err)
			}
		})
	}
}

func TestNoOverCommitment(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	c, err := r.shelf.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	if c.FreeSlots != maxSlots || c.MaxLUNBytes != c.AvailableBytes || c.AvailableBytes > c.TotalBytes || c.AvailableBytes == 0 {
		t.Fatalf("%+v", c)
	}
	big := CreateRequest{Slot: 0, Generation: testGen, SizeBytes: c.AvailableBytes / 8 * 7}
	if _, err := r.shelf.Create(ctx, big); err != nil {
		t.Fatal(err)
	}
	after, err := r.shelf.Capacity()
	if err != nil || after.FreeSlots != maxSlots-1 || after.AvailableBytes > c.AvailableBytes/4 {
		t.Fatalf("%+v of %+v, %v", after, c, err)
	}
	if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 1, Generation: otherGen, SizeBytes: c.AvailableBytes / 2}); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("second large LUN: %v", err)
	}
	if _, err := r.shelf.Grow(0, testGen, c.TotalBytes-sizeUnit); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("grow past what there is: %v", err)
	}
	if err := r.shelf.Delete(ctx, 0, testGen); err != nil {
		t.Fatal(err)
	}
	if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 1, Generation: otherGen, SizeBytes: c.AvailableBytes / 2}); err != nil {
		t.Fatal(err)
	}
}

func TestListInPages(t *testing.T) {
	r := newRig(t)
	for _, slot := range []uint8{9, 0, 254, 4} {
		_, err := r.shelf.Create(context.Background(), CreateRequest{Slot: slot, Generation: fmt.Sprintf("generation%06d", slot), SizeBytes: 4096})
		if err != nil {
			t.Fatal(err)
		}
	}
	var slots []uint8
	for next := 0; next >= 0; {
		var page []LUN
		var err error
		page, next, err = r.shelf.List(next, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range page {
			slots = append(slots, l.Slot)
		}
	}
	if !slices.Equal(slots, []uint8{0, 4, 9, 254}) {
		t.Fatal(slots)
	}
}

func TestGrow(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	end := a.write(0, lunSectors, block(1, 1))
	wantATA(t, a.call(end), 0x41, 0x10)
	l, err := r.shelf.Grow(3, testGen, 2<<20)
	if err != nil || l.SizeBytes != 2<<20 {
		t.Fatalf("%+v, %v", l, err)
	}
	wantOK(t, a.call(end))
	if l, err = r.shelf.Grow(3, testGen, 4096); err != nil || l.SizeBytes != 2<<20 {
		t.Fatalf("never smaller: %+v, %v", l, err)
	}
	if _, err := r.shelf.Grow(3, otherGen, 4<<20); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := r.shelf.Grow(3, testGen, 0); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	if l, err := r.shelf.Get(3, testGen); err != nil || l.SizeBytes != 2<<20 {
		t.Fatalf("after a restart: %+v, %v", l, err)
	}
}

// A LUN that a session writes to grows under it: IDENTIFY says the new size at once, what was written stays, the rest is zeroes.
func TestGrowInUse(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	identified := func() uint64 {
		t.Helper()
		id, err := aoe.ParseIdentify(wantOK(t, a.call(a.ata(0, aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}, nil))).Data())
		if err != nil {
			t.Fatal(err)
		}
		return id.Sectors()
	}
	last := block(0x5a, 1)
	wantOK(t, a.call(a.write(tag(epoch, 1), lunSectors-1, last)))
	wantATA(t, a.call(a.write(tag(epoch, 2), lunSectors, last)), 0x41, 0x10)
	for _, size := range []int64{3<<20 - 5, 3 << 20, 1} { // rounded up; again; smaller
		if l, err := r.shelf.Grow(3, testGen, size); err != nil || l.SizeBytes != 3<<20 || len(l.Admitted) != 1 {
			t.Fatalf("grow to %d: %+v, %v", size, l, err)
		}
		if got := identified(); got != 3*lunSectors {
			t.Fatalf("IDENTIFY says %d sectors", got)
		}
	}
	data, err := wantOK(t, a.call(a.read(tag(epoch, 3), lunSectors-1, 2))).Payload(2)
	if err != nil || !bytes.Equal(data, append(last, block(0, 1)...)) {
		t.Errorf("around the old end: %v, or other data", err)
	}
	wantOK(t, a.call(a.write(tag(epoch, 4), 3*lunSectors-1, last)))
	c, err := r.shelf.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int64]error{c.TotalBytes - sizeUnit: ErrNoSpace, c.TotalBytes + sizeUnit: ErrTooLarge, maxLUNBytes + 1: ErrTooLarge} {
		if _, err := r.shelf.Grow(3, testGen, size); !errors.Is(err, want) {
			t.Errorf("grow to %d of %d bytes: %v, want %v", size, c.TotalBytes, err, want)
		}
	}
	if got := identified(); got != 3*lunSectors {
		t.Errorf("after refusals IDENTIFY says %d sectors", got)
	}
	r.stop()
	if _, err := r.shelf.Grow(3, testGen, 4<<20); !errors.Is(err, ErrClosed) {
		t.Errorf("closed shelf: %v", err)
	}
}

// Data of a deleted LUN never shows up in the next one at its slot.
func TestDeleteScrubs(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	wantOK(t, a.call(a.write(0, 0, block(0xee, 100))))
	ctx := context.Background()
	for range 2 { // the second finds nothing
		if err := r.shelf.Delete(ctx, 3, testGen); err != nil {
			t.Fatal(err)
		}
	}
	a.silent(a.read(0, 0, 1))
	if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 3, Generation: otherGen, SizeBytes: 1 << 20, Access: OpenAccess}); err != nil {
		t.Fatal(err)
	}
	data, _ := wantOK(t, a.call(a.read(0, 0, 100))).Payload(100)
	for i, b := range data {
		if b != 0 {
			t.Fatalf("byte %d of the new LUN is %#x", i, b)
		}
	}
}

func TestClosedShelfRefuses(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.stop()
	ctx := context.Background()
	if _, err := r.shelf.Create(ctx, CreateRequest{Slot: 1, Generation: otherGen, SizeBytes: 1}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := r.shelf.Delete(ctx, 3, testGen); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := r.shelf.Capacity(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestClosedShelfKnowsNothing: "no such LUN" would tell the control plane that a node is off.
func TestClosedShelfKnowsNothing(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	r.stop()
	ctx := context.Background()
	_, expelled := r.shelf.Expel(ctx, 3, testGen, "node-a")
	_, admitted := r.shelf.Admit(ctx, 3, testGen, Admission{Node: "node-a", MACs: []aoe.MAC{macA}})
	_, got := r.shelf.Get(3, testGen)
	for _, err := range []error{expelled, admitted, got, r.shelf.Delete(ctx, 3, testGen)} {
		if !errors.Is(err, ErrClosed) || errors.Is(err, ErrNotFound) {
			t.Errorf("a closed shelf says %v", err)
		}
	}
}
