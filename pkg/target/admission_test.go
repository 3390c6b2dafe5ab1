package target

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func TestAdmissionIsForOneNode(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	ctx := context.Background()
	r.admit("node-a", macA)
	r.admit("node-a", macA) // again
	_, err := r.shelf.Admit(ctx, 3, testGen, Admission{Node: "node-b", MACs: []aoe.MAC{macB}})
	if !errors.Is(err, ErrAdmitted) {
		t.Fatalf("second node: %v", err)
	}
	if err := r.shelf.Delete(ctx, 3, testGen); !errors.Is(err, ErrAdmitted) {
		t.Fatalf("delete while admitted: %v", err)
	}
	if _, err := r.shelf.Expel(ctx, 3, testGen, "node-b"); err != nil {
		t.Fatalf("expel of a node that is not admitted: %v", err)
	}
	l, err := r.shelf.Expel(ctx, 3, testGen, "node-a")
	if err != nil || len(l.Admitted) != 0 {
		t.Fatalf("expel: %v, %v", l.Admitted, err)
	}
	r.admit("node-b", macB)
	if err := r.shelf.Delete(ctx, 3, otherGen); err != nil {
		t.Fatalf("delete of another generation: %v", err)
	}
}

func TestAdmissionIsChecked(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	for name, a := range map[string]Admission{
		"no node":      {MACs: []aoe.MAC{macA}},
		"no addresses": {Node: "n"},
		"multicast":    {Node: "n", MACs: []aoe.MAC{{1}}},
		"zero":         {Node: "n", MACs: []aoe.MAC{{}}},
		"too many":     {Node: "n", MACs: make([]aoe.MAC, maxAdmitted+1)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := r.shelf.Admit(context.Background(), 3, testGen, a); !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
		})
	}
	_, err := r.shelf.Admit(context.Background(), 3, otherGen, Admission{Node: "n", MACs: []aoe.MAC{macA}})
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("another generation: %v", err)
	}
}

// An address that the node no longer has is off, and its session with it only if it was the last.
func TestAdmitReplacesAddresses(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA, macB)
	a, b := r.client(macA), r.client(macB)
	epoch := a.session(uuidA, 1)
	wantOK(t, b.call(b.write(tag(epoch, 1), 0, block(1, 1))))
	r.admit("node-a", macA)
	b.silent(b.write(tag(epoch, 2), 0, block(2, 1)))
	wantOK(t, a.call(a.write(tag(epoch, 3), 0, block(3, 1))))
}

// When Expel answers, no write of the node takes effect any more: running ones are done, queued ones dropped.
func TestExpelIsABarrier(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	release := disk.block()
	defer release()
	const sent = lunWorkers + 20
	for i := range uint32(sent) {
		a.send(a.write(tag(epoch, i), uint64(i), block(1, 1)))
	}
	for range lunWorkers {
		<-disk.entered
	}
	a.fence()

	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.shelf.Expel(short, 3, testGen, "node-a"); !errors.Is(err, ErrBusy) {
		t.Fatalf("expel while writes hang: %v", err)
	}
	expelled := make(chan error, 1)
	go func() {
		_, err := r.shelf.Expel(context.Background(), 3, testGen, "node-a")
		expelled <- err
	}()
	select {
	case err := <-expelled:
		t.Fatalf("expel answered while writes hang: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-expelled; err != nil {
		t.Fatal(err)
	}
	before := disk.writes.Load()
	if before != lunWorkers {
		t.Fatalf("%d writes took effect, want the %d that ran", before, lunWorkers)
	}
	a.silent(a.write(tag(epoch, sent), 0, block(9, 1)))
	r.admit("node-b", macB)
	b := r.client(macB)
	next := b.session(uuidB, 1)
	wantOK(t, b.call(b.write(tag(next, 1), 40, block(5, 1))))
	a.silent(a.write(tag(next, 2), 40, block(9, 1)))
	got, _ := wantOK(t, b.call(b.read(tag(next, 3), 40, 1))).Payload(1)
	if !bytes.Equal(got, block(5, 1)) {
		t.Fatal("an expelled node wrote")
	}
	if n := disk.writes.Load(); n != before+1 {
		t.Fatalf("%d writes, want %d", n, before+1)
	}
}

// A read that was waiting for the disk when its node was taken off is not answered.
func TestExpelledNodeGetsNoData(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	l := r.shelf.at(3)
	p := &port{shelf: r.shelf}
	j := &job{port: p, lun: l, src: macA, reply: 100}
	l.mu.Lock()
	j.rules = l.rules
	l.mu.Unlock()
	if !l.mayAnswer(j) {
		t.Fatal("an admitted node gets no answer")
	}
	if _, err := r.shelf.Expel(context.Background(), 3, testGen, "node-a"); err != nil {
		t.Fatal(err)
	}
	if l.mayAnswer(j) {
		t.Fatal("an expelled node gets an answer")
	}
}

// A node that is let in again is told that it is another admission, also by another process of the target.
func TestAdmissionNumber(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	open := func(number uint32, incarnation uint64) aoe.Open {
		t.Helper()
		c := r.client(macA)
		frame := c.openFrame(aoe.OpenSession, uuidA, incarnation, testGen)
		binary.BigEndian.PutUint32(frame[84:], number)
		answer, err := c.call(frame).Open()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	r.admit("node-a", macA)
	first := open(0, 1)
	if first.Status() != aoe.OpenDone || first.Admission() == 0 {
		t.Fatalf("status %v, admission %d", first.Status(), first.Admission())
	}
	r.admit("node-a", macA, macB) // one more address, the same admission
	if o := open(first.Admission(), 2); o.Status() != aoe.OpenDone || o.Admission() != first.Admission() {
		t.Fatalf("status %v, admission %d", o.Status(), o.Admission())
	}
	if _, err := r.shelf.Expel(context.Background(), 3, testGen, "node-a"); err != nil {
		t.Fatal(err)
	}
	if o := open(first.Admission(), 3); o.Status() != aoe.OpenNotAdmitted || o.Admission() != 0 {
		t.Fatalf("expelled: status %v, admission %d", o.Status(), o.Admission())
	}
	r.stop()
	r.start()
	r.admit("node-a", macA)
	for range 2 {
		o := open(first.Admission(), 4)
		if o.Status() != aoe.OpenOtherAdmission || o.Epoch() != 0 || o.Admission() == first.Admission() || o.Admission() == 0 {
			t.Fatalf("admitted again: status %v, epoch %d, admission %d", o.Status(), o.Epoch(), o.Admission())
		}
		r.stop()
		r.start()
	}
	if o := open(0, 5); o.Status() != aoe.OpenDone || o.Admission() == first.Admission() {
		t.Fatalf("a new attachment: status %v, admission %d", o.Status(), o.Admission())
	}
}
