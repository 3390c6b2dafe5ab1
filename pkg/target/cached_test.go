package target

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// batched is a file that ports read and write in batches, whatever its file system can; the next broken ones fail.
type batched struct {
	File
	broken int
}

func (b *batched) Cached(t *uring.Transfer) bool {
	t.FD, t.NoWait = b.File.(*sparseFile).fd, false
	if b.broken > 0 {
		b.broken--
		t.FD = -1
	}
	return false
}

// TestBatchKeepsOrder: of writes to an open LUN that come together, one that goes to a worker is not overtaken by those after it.
func TestBatchKeepsOrder(t *testing.T) {
	var file *batched
	_, p := bench(t, OpenAccess, func(b File) File { file = &batched{File: b, broken: 1}; return file })
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	for _, frame := range [][]byte{c.write(1, 0, block(0xaa, 8)), c.write(2, 0, block(0xbb, 8)), c.write(3, 64, block(0xcc, 8)), c.read(4, 200, 8)} {
		p.handle(frame)
	}
	if len(p.staged) != 4 || len(p.out) != 0 {
		t.Fatalf("%d staged, %d answered", len(p.staged), len(p.out))
	}
	p.serveStaged()
	if p.lent != 3 {
		t.Errorf("%d writes with a worker, want all three", p.lent)
	}
	for p.lent > 0 {
		p.takeBack(<-p.finished)
	}
	for _, f := range p.out {
		if a, err := aoe.Frame(f.Bytes()).ATA(); err != nil || a.Status() != aoe.StatusDRDY {
			t.Errorf("answer %#x: %v, %v", aoe.Frame(f.Bytes()).Tag(), a.Status(), err)
		}
	}
	if len(p.out) != 4 {
		t.Errorf("%d answers", len(p.out))
	}
	got := make([]byte, 8*aoe.SectorSize)
	if err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, block(0xbb, 8)) {
		t.Errorf("the older write was last: %x …, %v", got[0], err)
	}
}

// TestBatchBeforeWorkers: what a worker has to do on an open LUN comes after the writes that came before it.
func TestBatchBeforeWorkers(t *testing.T) {
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	trim := block(0, 1)
	aoe.PutTrim(trim, 0, 8)
	for name, tt := range map[string]struct {
		frame []byte
		want  []byte
	}{
		"FUA":  {c.ata(2, aoe.ATAFields{Flags: 0x41, Command: aoe.ATAWriteDMAFUAExt, Sectors: 8}, block(0xbb, 8)), block(0xbb, 8)},
		"TRIM": {c.ata(2, aoe.ATAFields{Flags: 0x41, Command: aoe.ATADataSetManagement, Feature: 1, Sectors: 1}, trim), block(0, 8)},
	} {
		var file *batched
		_, p := bench(t, OpenAccess, func(b File) File { file = &batched{File: b}; return file })
		p.handle(c.write(1, 0, block(0xaa, 8)))
		p.handle(tt.frame)
		for p.lent > 0 {
			p.takeBack(<-p.finished)
		}
		p.serveStaged()
		got := make([]byte, len(tt.want))
		if err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: the older write was last: %x …, %v", name, got[0], err)
		}
		if len(p.out) != 2 {
			t.Errorf("%s: %d answers", name, len(p.out))
		}
	}
}

// TestExpelWaitsForBatch: a node is not off a LUN before what a port has staged of it is done.
func TestExpelWaitsForBatch(t *testing.T) {
	var file *batched
	s, p := bench(t, ManagedAccess, func(b File) File { file = &batched{File: b}; return file })
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	if _, err := s.Admit(context.Background(), 3, testGen, Admission{Node: "n", MACs: []aoe.MAC{macA}}); err != nil {
		t.Fatal(err)
	}
	p.handle(c.openFrame(aoe.OpenSession, uuidA, 1, testGen))
	p.takeBack(<-p.finished)
	o, err := aoe.Frame(p.out[0].Bytes()).Open()
	if err != nil {
		t.Fatal(err)
	}
	epoch := o.Epoch()
	p.settle()
	p.handle(c.write(tag(epoch, 1), 0, block(0xaa, 8)))
	if len(p.staged) != 1 {
		t.Fatalf("%d staged", len(p.staged))
	}
	expelled := make(chan error)
	go func() {
		_, err := s.Expel(context.Background(), 3, testGen, "n")
		expelled <- err
	}()
	select {
	case err := <-expelled:
		t.Fatalf("expelled before its write was done: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	p.serveStaged()
	if err := <-expelled; err != nil {
		t.Fatal(err)
	}
	if len(p.out) != 0 {
		t.Error("a node that is off the LUN got an answer")
	}
}

// TestHoldingSeveral: ports that hold the same LUNs in different orders, alone or not, wait for each other neither for ever nor while somebody
// waits for each of them.
func TestHoldingSeveral(t *testing.T) {
	s, p := bench(t, OpenAccess, func(b File) File { return &batched{File: b} })
	if _, err := s.Create(context.Background(), CreateRequest{Slot: 4, Generation: otherGen, SizeBytes: 1 << 20, Access: OpenAccess}); err != nil {
		t.Fatal(err)
	}
	q, err := newPort(context.Background(), s, nullLink{mtu: 9000})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.close(); err != nil {
			t.Error(err)
		}
	}()
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	var frames [][]byte
	for _, slot := range []uint8{3, 4} {
		for _, f := range [][]byte{c.read(0, 0, 8), c.write(0, 0, block(1, 8))} {
			aoe.Frame(f).SetAddr(aoe.Addr{Shelf: testShelf, Slot: slot})
			frames = append(frames, f)
		}
	}
	stop := make(chan struct{})
	var waiters, ports sync.WaitGroup
	for _, slot := range []uint8{3, 4} {
		waiters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.at(slot).awaitInline()
				}
			}
		})
	}
	for i, port := range []*port{p, q} {
		ports.Go(func() {
			for round := range 200 {
				for k := range frames {
					port.handle(frames[(k*(1+2*i)+round)%len(frames)]) // one forwards, the other backwards
				}
				port.serveStaged()
				port.settle()
			}
		})
	}
	ports.Wait()
	close(stop)
	waiters.Wait()
}
