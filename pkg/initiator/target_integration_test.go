//go:build integration

package initiator

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// shelf is a target of ours with one managed LUN that admits the given interfaces.
type shelf struct {
	t    testing.TB
	dir  string
	open *target.Shelf
	stop func()
}

func newShelf(t testing.TB, ifnames []string, admitted ...string) *shelf {
	t.Helper()
	s := &shelf{t: t, dir: t.TempDir()}
	s.start(ifnames, "")
	if _, err := s.open.Create(context.Background(), target.CreateRequest{Slot: testAddr.Slot, Generation: testGeneration, Name: "test", SizeBytes: 16 << 20, Access: target.ManagedAccess}); err != nil {
		t.Fatal(err)
	}
	s.admit(admitted...)
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *shelf) admit(ifnames ...string) {
	s.t.Helper()
	a := target.Admission{Node: "test"}
	for _, name := range ifnames {
		i, err := net.InterfaceByName(name)
		if err != nil {
			s.t.Fatal(err)
		}
		a.MACs = append(a.MACs, aoe.MAC(i.HardwareAddr))
	}
	if _, err := s.open.Admit(context.Background(), testAddr.Slot, testGeneration, a); err != nil {
		s.t.Fatal(err)
	}
}

// start opens the shelf and serves it on the interfaces, and on a local socket in runDir if that is not empty.
func (s *shelf) start(ifnames []string, runDir string) {
	s.t.Helper()
	number := testAddr.Shelf
	open, err := target.Open(target.Config{Dir: s.dir, Number: &number})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for _, name := range ifnames {
		l, err := link.OpenPacket(name, link.PacketConfig{Filter: link.FilterRequests(number)})
		if err != nil {
			s.t.Fatal(err)
		}
		group.Go(func() {
			if err := open.Serve(ctx, l); err != nil {
				s.t.Error(err)
			}
		})
	}
	if runDir != "" {
		listener, err := link.ListenLocal(filepath.Join(runDir, "shelf-7.sock"))
		if err != nil {
			s.t.Fatal(err)
		}
		group.Go(func() {
			if err := open.ServeLocal(ctx, listener); err != nil {
				s.t.Error(err)
			}
		})
	}
	s.open = open
	s.stop = func() {
		cancel()
		group.Wait()
		if err := open.Close(); err != nil {
			s.t.Error(err)
		}
		s.stop = func() {}
	}
}

func TestOurTarget(t *testing.T) {
	ours, theirs := cable(t, "ot", 9000)
	s := newShelf(t, []string{theirs}, ours)
	d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	if info := d.Info(); !info.Flush || !info.Session || !info.FUA || !info.Trim || info.Serial != testGeneration {
		t.Errorf("info %+v", info)
	}
	load(t, d, 16, 60)
	if err := do(t, d, &Request{Op: OpFlush}); err != nil {
		t.Error(err)
	}
	if err := do(t, d, &Request{Op: OpWrite, FUA: true, Sectors: 32, Data: pattern(1, 32)}); err != nil {
		t.Error(err)
	}
	if err := do(t, d, &Request{Op: OpTrim, LBA: 8, Sectors: 8}); err != nil {
		t.Error(err)
	}
	got, want := make([]byte, 32*512), pattern(1, 32)
	clear(want[8*512 : 16*512])
	if err := do(t, d, &Request{Op: OpRead, Sectors: 32, Data: got}); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after trim: %v, equal %v", err, bytes.Equal(got, want))
	}
	// A stop and a start: requests wait, a new session is opened, and no cache is lost.
	before := d.State()
	done := make(chan struct{})
	go func() {
		defer close(done)
		load(t, d, 8, 200)
	}()
	for range 2 {
		time.Sleep(100 * time.Millisecond) // of load, whatever it does just then
		s.stop()
		s.start([]string{theirs}, "")
	}
	<-done
	if err := do(t, d, &Request{Op: OpFlush}); err != nil {
		t.Errorf("flush after the restarts: %v", err)
	}
	if after := d.State(); after.Incarnation <= before.Incarnation || after.Lost {
		t.Errorf("state before %+v, after %+v", before, after)
	}
	if err := d.Detach(within(t, 5*time.Second), false); err != nil {
		t.Error(err)
	}
}

func TestOurTargetRefuses(t *testing.T) {
	ours, theirs := cable(t, "or", 9000)
	s := newShelf(t, []string{theirs}, theirs) // another's address
	shard := packetShard(t, "", ours)
	if _, err := shard.Attach(within(t, 1500*time.Millisecond), testDevice()); !errors.Is(err, ErrNoAnswer) && !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("not admitted: %v", err)
	}
	s.admit(ours)
	wrong := testDevice()
	wrong.Generation = "qrstuvwxyz234567"
	if _, err := shard.Attach(within(t, 5*time.Second), wrong); !errors.Is(err, ErrIdentity) {
		t.Errorf("another generation: %v", err)
	}
	d, err := shard.Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	if err := do(t, d, &Request{Op: OpWrite, Sectors: 8, Data: pattern(1, 8)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open.Expel(context.Background(), testAddr.Slot, testGeneration, "test"); err != nil {
		t.Fatal(err)
	}
	done := make(signal)
	r := &Request{Op: OpWrite, Sectors: 8, Data: pattern(2, 8), Done: done}
	if err := shard.Do(context.Background(), func() { d.Submit(r) }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
		if r.Err == nil {
			t.Error("a node that was taken off wrote")
		}
	case <-time.After(time.Second): // silence is an answer, too
	}
	if err := d.Detach(within(t, time.Second), true); err != nil {
		t.Error(err)
	}
}

// TestOurTargetLocally: initiator and target on one host, over the socket.
func TestOurTargetLocally(t *testing.T) {
	ours, theirs := cable(t, "ol", 9000)
	s := newShelf(t, nil, ours)
	s.stop()
	dir := t.TempDir()
	s.start(nil, dir)
	_ = theirs
	d, err := packetShard(t, dir, ours).Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	load(t, d, 8, 60)
	if p := d.Paths(); len(p) != 1 || p[0].Interface != "local" || p[0].MaxSectors < 64 {
		t.Errorf("paths %+v", p)
	}
	s.stop()
	s.start(nil, dir)
	load(t, d, 8, 20)
}

// TestTwoInterfaces: one goes down in the middle of everything.
func TestTwoInterfaces(t *testing.T) {
	ours1, theirs1 := cable(t, "ta", 9000)
	ours2, theirs2 := cable(t, "tb", 9000)
	newShelf(t, []string{theirs1, theirs2}, ours1, ours2)
	d, err := packetShard(t, "", ours1, ours2).Attach(within(t, 10*time.Second), testDevice())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both paths are up", func() bool {
		p := d.Paths()
		return len(p) == 2 && p[0].State == PathUp && p[1].State == PathUp
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		load(t, d, 8, 300)
	}()
	for _, name := range []string{ours1, ours2} {
		time.Sleep(100 * time.Millisecond) // of load, whatever it does just then
		setUp(t, name, false)
		time.Sleep(100 * time.Millisecond)
		setUp(t, name, true)
		eventually(t, name+" is used again", func() bool {
			for _, p := range d.Paths() {
				if p.Interface == name && p.State == PathUp {
					return true
				}
			}
			return false
		})
	}
	<-done
	if d.Stats().Errors != 0 {
		t.Errorf("stats %+v", d.Stats())
	}
}
