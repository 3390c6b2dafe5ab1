package target

import (
	"slices"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func wantConfig(t *testing.T, f aoe.Frame, want string) aoe.Config {
	t.Helper()
	c, err := f.Config()
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.ConfigString()
	if err != nil || string(got) != want {
		t.Fatalf("config string %q, %v; want %q", got, err, want)
	}
	return c
}

func TestConfigString(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	own := "aoe-csi:" + testGen
	c := wantConfig(t, a.call(a.config(aoe.ConfigRead, "")), own)
	if c.BufferCount() != BufferCount || c.SectorCount() != 127 || c.Version() != 1 || c.Firmware() != FirmwareVersion {
		t.Fatalf("buffers %d, sectors %d", c.BufferCount(), c.SectorCount())
	}
	wantConfig(t, a.call(a.config(aoe.ConfigTest, own)), own)
	wantConfig(t, a.call(a.config(aoe.ConfigPrefix, "aoe-csi:")), own)
	wantConfig(t, a.call(a.config(aoe.ConfigPrefix, "")), own)
	a.silent(a.config(aoe.ConfigTest, "aoe-csi:"))
	a.silent(a.config(aoe.ConfigPrefix, "other"))
	f := a.call(a.config(aoe.ConfigSet, "mine"))
	wantError(t, f, aoe.ErrorConfigSet)
	wantConfig(t, f, own)
	wantConfig(t, a.call(a.config(aoe.ConfigSet, own)), own)
	wantConfig(t, a.call(a.config(aoe.ConfigForceSet, "")), "")
	wantConfig(t, a.call(a.config(aoe.ConfigSet, "mine")), "mine")
	long := strings.Repeat("x", aoe.MaxConfigString)
	wantConfig(t, a.call(a.config(aoe.ConfigForceSet, long)), long)
	wantError(t, a.call(a.config(5, "")), aoe.ErrorArgument)
	r.stop()
	r.start()
	a = r.client(macA)
	wantConfig(t, a.call(a.config(aoe.ConfigRead, "")), long)
}

func TestConfigStringOfManagedLUN(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	own := "aoe-csi:" + testGen
	wantError(t, a.call(a.config(aoe.ConfigSet, "mine")), aoe.ErrorConfigSet)
	wantError(t, a.call(a.config(aoe.ConfigForceSet, "mine")), aoe.ErrorArgument)
	wantConfig(t, a.call(a.config(aoe.ConfigRead, "")), own)
}

// Each part of an address may be wild; every LUN that matches and is visible answers.
func TestDiscovery(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	if _, err := r.shelf.Create(t.Context(), CreateRequest{Slot: 9, Generation: otherGen, SizeBytes: 4096, Access: OpenAccess}); err != nil {
		t.Fatal(err)
	}
	r.admit("node-a", macA)
	a, b := r.client(macA), r.client(macB)
	find := func(c *client, addr aoe.Addr) (slots []uint8) {
		frame := c.config(aoe.ConfigRead, "")
		aoe.Frame(frame).SetAddr(addr)
		aoe.Frame(frame).SetDst(aoe.Broadcast)
		c.send(frame)
		last := c.read(0, 0, 1)
		aoe.Frame(last).SetAddr(aoe.Addr{Shelf: testShelf, Slot: 9})
		c.send(last)
		for {
			f := c.receive()
			if f.Tag() == aoe.Frame(last).Tag() {
				return slots
			}
			if f.Tag() == aoe.Frame(frame).Tag() {
				slots = append(slots, f.Addr().Slot)
			}
		}
	}
	for _, test := range []struct {
		addr aoe.Addr
		a, b []uint8
	}{
		{aoe.Any, []uint8{3, 9}, []uint8{9}},
		{aoe.Addr{Shelf: testShelf, Slot: aoe.AnySlot}, []uint8{3, 9}, []uint8{9}},
		{aoe.Addr{Shelf: aoe.AnyShelf, Slot: 3}, []uint8{3}, nil},
		{aoe.Addr{Shelf: testShelf, Slot: 4}, nil, nil},
		{aoe.Addr{Shelf: 8, Slot: aoe.AnySlot}, nil, nil},
	} {
		if got := find(a, test.addr); !slices.Equal(got, test.a) {
			t.Errorf("%v, admitted: %v, want %v", test.addr, got, test.a)
		}
		if got := find(b, test.addr); !slices.Equal(got, test.b) {
			t.Errorf("%v, stranger: %v, want %v", test.addr, got, test.b)
		}
	}
}

func maskOf(t *testing.T, f aoe.Frame) (list []aoe.MAC, why aoe.MaskError, count int) {
	t.Helper()
	m, err := f.MACMask()
	if err != nil || f.IsError() {
		t.Fatal(err, f.ErrorCode())
	}
	if m.Error() != 0 {
		return nil, m.Error(), m.Count()
	}
	for i := range m.Count() {
		list = append(list, m.Directive(i).MAC)
	}
	return list, 0, m.Count()
}

func TestMaskList(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a, b := r.client(macA), r.client(macB)
	add := func(m aoe.MAC) aoe.Directive { return aoe.Directive{Command: aoe.DirectiveAdd, MAC: m} }
	remove := func(m aoe.MAC) aoe.Directive { return aoe.Directive{Command: aoe.DirectiveDelete, MAC: m} }
	list, _, _ := maskOf(t, a.call(a.mask(aoe.MaskEdit, add(macA), add(macC), add(macA), remove(macB), aoe.Directive{})))
	if !slices.Equal(list, []aoe.MAC{macA, macC}) {
		t.Fatal(list)
	}
	wantOK(t, a.call(a.write(0, 0, block(1, 1))))
	b.silent(b.read(0, 0, 1))
	b.silent(b.config(aoe.ConfigRead, ""))
	_, why, count := maskOf(t, a.call(a.mask(aoe.MaskEdit, add(macB), aoe.Directive{Command: 7}, add(macC))))
	if why != aoe.MaskBadDirective || count != 1 {
		t.Fatalf("error %d after %d", why, count)
	}
	wantOK(t, b.call(b.read(0, 0, 1))) // the directive before the bad one stays applied
	wantError(t, a.call(a.mask(9)), aoe.ErrorArgument)
	cut := a.mask(aoe.MaskEdit)
	cut[27] = 48 // directives that are not in the frame
	wantError(t, a.call(cut), aoe.ErrorArgument)
	cut[26] = 48 // found by fuzzing: with an error code the count was believed
	wantError(t, a.call(cut), aoe.ErrorArgument)
	r.stop()
	r.start()
	a = r.client(macA)
	if list, _, _ := maskOf(t, a.call(a.mask(aoe.MaskRead))); len(list) != 3 {
		t.Fatalf("after a restart: %v", list)
	}
	var many []aoe.Directive
	for i := range maxMask {
		many = append(many, add(aoe.MAC{2, 0, 0, 0, 1, byte(i)}))
	}
	if _, why, count := maskOf(t, a.call(a.mask(aoe.MaskEdit, many...))); why != aoe.MaskFull || count != maxMask-3 {
		t.Fatalf("full: error %d after %d", why, count)
	}
}

func TestMaskListOfManagedLUN(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	a, b := r.client(macA), r.client(macB)
	_, why, _ := maskOf(t, a.call(a.mask(aoe.MaskEdit, aoe.Directive{Command: aoe.DirectiveAdd, MAC: macB})))
	if why != aoe.MaskUnspecified {
		t.Fatalf("edit: %d", why)
	}
	if list, _, _ := maskOf(t, a.call(a.mask(aoe.MaskRead))); !slices.Equal(list, []aoe.MAC{macA}) {
		t.Fatal(list)
	}
	b.silent(b.config(aoe.ConfigRead, ""))
	wantError(t, a.call(a.reserve(aoe.ReserveSet, macA)), aoe.ErrorArgument)
	wantError(t, a.call(a.reserve(aoe.ReserveForceSet, macA)), aoe.ErrorArgument)
}

func reservedOf(t *testing.T, f aoe.Frame) (list []aoe.MAC) {
	t.Helper()
	r, err := f.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Count() {
		list = append(list, r.MAC(i))
	}
	return list
}

func TestReservation(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a, b := r.client(macA), r.client(macB)
	if list := reservedOf(t, a.call(a.reserve(aoe.ReserveSet, macA, macC))); !slices.Equal(list, []aoe.MAC{macA, macC}) {
		t.Fatal(list)
	}
	wantOK(t, a.call(a.write(0, 0, block(1, 1))))
	wantError(t, b.call(b.write(0, 0, block(2, 1))), aoe.ErrorReserved)
	wantError(t, b.call(b.read(0, 0, 1)), aoe.ErrorReserved)
	wantError(t, b.call(b.flush(0)), aoe.ErrorReserved)
	wantOK(t, b.call(b.ata(0, aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}, nil)))
	f := b.call(b.reserve(aoe.ReserveSet, macB))
	wantError(t, f, aoe.ErrorReserved)
	if list := reservedOf(t, f); len(list) != 2 {
		t.Fatal(list)
	}
	r.stop() // it is kept
	r.start()
	a, b = r.client(macA), r.client(macB)
	wantError(t, b.call(b.write(0, 0, block(2, 1))), aoe.ErrorReserved)
	if list := reservedOf(t, b.call(b.reserve(aoe.ReserveForceSet, macB))); !slices.Equal(list, []aoe.MAC{macB}) {
		t.Fatal(list)
	}
	wantError(t, a.call(a.write(0, 0, block(3, 1))), aoe.ErrorReserved)
	wantOK(t, b.call(b.write(0, 0, block(2, 1))))
	if list := reservedOf(t, b.call(b.reserve(aoe.ReserveSet))); len(list) != 0 {
		t.Fatal(list)
	}
	wantOK(t, a.call(a.write(0, 0, block(3, 1))))
	wantError(t, a.call(a.reserve(7)), aoe.ErrorArgument)
	cut := a.reserve(aoe.ReserveForceSet, macA, macB)
	wantError(t, a.call(cut[:len(cut)-1]), aoe.ErrorArgument)
}

// A forced reservation answers when writes of others that ran before are done and queued ones cannot run any more.
func TestForcedReservationIsABarrier(t *testing.T) {
	r, disk, _ := newDiskRig(t, OpenAccess)
	a, b := r.client(macA), r.client(macB)
	release := disk.block()
	defer release()
	a.send(a.write(0, 0, block(1, 1)))
	a.send(a.write(0, 1, block(1, 1))) // queued behind the first
	<-disk.entered
	a.fence()
	fence := b.reserve(aoe.ReserveForceSet, macB)
	b.silent(fence)
	l := r.shelf.at(3)
	for stored := false; !stored; { // the clerk has it on the disk, and waits
		l.mu.Lock()
		stored = len(l.reserved) > 0
		l.mu.Unlock()
	}
	release()
	b.answer(aoe.Frame(fence).Tag())
	wantOK(t, a.next())
	wantError(t, a.next(), aoe.ErrorReserved)
	if n := disk.writes.Load(); n != 1 {
		t.Fatalf("%d writes took effect", n)
	}
}

// Writes of an open LUN take effect in the order of arrival: a copy that arrived before newer data stays before it.
func TestWritesOfOpenLUNKeepTheirOrder(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	a := r.client(macA)
	var last []byte
	for i := range 200 {
		last = block(byte(i), 1)
		a.send(a.write(0, 5, last))
	}
	for range 200 {
		wantOK(t, a.next())
	}
	if got, _ := wantOK(t, a.call(a.read(0, 5, 1))).Payload(1); !slices.Equal(got, last) {
		t.Fatalf("last write lost: %#x", got[0])
	}
}

func TestAdvertisements(t *testing.T) {
	r := newRig(t)
	a, b := r.client(macA), r.client(macB)
	a.fence() // both are served
	b.fence()
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	f := a.receive()
	if f.Command() != aoe.CommandConfig || f.Dst() != macA || f.Tag() != 0 || f.Addr() != (aoe.Addr{Shelf: testShelf, Slot: 3}) {
		t.Fatalf("to the admitted node: %v to %v", f.Command(), f.Dst())
	}
	wantConfig(t, f, "aoe-csi:"+testGen)
	if _, err := r.shelf.Create(t.Context(), CreateRequest{Slot: 9, Generation: otherGen, SizeBytes: 4096, Access: OpenAccess}); err != nil {
		t.Fatal(err)
	}
	// The managed LUN was advertised on b's link, too, to a's address: on a wire the card would drop it.
	for f = b.receive(); f.Dst() == macA; f = b.receive() {
	}
	if f.Addr().Slot != 9 || f.Dst() != aoe.Broadcast {
		t.Fatalf("new open LUN: %v to %v", f.Addr(), f.Dst())
	}
}
