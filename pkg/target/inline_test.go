package target

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// A write that the port does itself is done once, whatever the network does to its frame.
func TestPortWritesOnce(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	disk.letPortsWrite(nil)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	wantOK(t, a.call(a.write(tag(epoch, 1), 0, block(1, 2))))
	wantOK(t, a.call(a.write(tag(epoch, 2), 0, block(2, 2))))
	wantOK(t, a.call(a.write(tag(epoch, 1), 0, block(1, 2)))) // a late copy
	got, _ := wantOK(t, a.call(a.read(tag(epoch, 3), 0, 2))).Payload(2)
	if !bytes.Equal(got, block(2, 2)) {
		t.Error("a late copy of a write took effect")
	}
	if n := disk.writes.Load(); n != 2 {
		t.Errorf("%d writes, want 2", n)
	}
}

// Two ports get a copy each of a write: while one writes, the other must not begin.
func TestPortsWriteOnce(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a, same := r.client(macA), r.client(macA) // connections are ports of their own
	epoch := a.session(uuidA, 1)
	frame := a.write(tag(epoch, 1), 0, block(1, 1))
	disk.letPortsWrite(func() { same.silent(frame) })
	wantOK(t, a.call(frame))
	if n := disk.writes.Load(); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
}

// On an open LUN a write that could be done at once does not overtake one that waits for the disk.
func TestPortWritesInOrder(t *testing.T) {
	r, disk, _ := newDiskRig(t, OpenAccess)
	a := r.client(macA)
	release := disk.block()
	defer release()
	first, second := a.write(0, 0, block(1, 1)), a.write(0, 0, block(2, 1))
	a.send(first)
	<-disk.entered
	disk.letPortsWrite(nil)
	a.silent(second)
	release()
	wantOK(t, a.answer(aoe.Frame(first).Tag()))
	wantOK(t, a.answer(aoe.Frame(second).Tag()))
	got, _ := wantOK(t, a.call(a.read(0, 0, 1))).Payload(1)
	if !bytes.Equal(got, block(2, 1)) {
		t.Error("the second of two writes did not come last")
	}
	disk.letPortsWrite(func() { disk.cached.Store(false) })
	wantOK(t, a.call(a.write(0, 0, block(3, 1))))
	if disk.cached.Load() {
		t.Error("the port does not write by itself again when none waits")
	}
}

// When Expel answers, no write that a port was at takes effect any more.
func TestExpelWaitsForPorts(t *testing.T) {
	r, disk, _ := newDiskRig(t, ManagedAccess)
	r.admit("node-a", macA)
	a := r.client(macA)
	epoch := a.session(uuidA, 1)
	writing, written, hang := make(chan struct{}), make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(hang) })
	defer release()
	disk.letPortsWrite(func() {
		close(writing)
		<-hang
		close(written)
	})
	a.send(a.write(tag(epoch, 1), 0, block(1, 1)))
	<-writing
	expelled := make(chan error, 1)
	go func() {
		_, err := r.shelf.Expel(context.Background(), 3, testGen, "node-a")
		expelled <- err
	}()
	l := r.shelf.at(3)
	for { // until the node is off: what it waits for then is the write
		l.mu.Lock()
		off := l.node(macA) == ""
		l.mu.Unlock()
		if off {
			break
		}
	}
	select {
	case err := <-expelled:
		t.Fatalf("expel answered while a port writes: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-expelled; err != nil {
		t.Fatal(err)
	}
	select {
	case <-written:
	default:
		t.Error("expel answered before the port had written")
	}
}
