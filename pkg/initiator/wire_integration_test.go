//go:build integration

package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

const insideEnv = "AOE_CSI_TEST_NETNS"

// TestMain runs the tests once more in a network namespace of their own, which has no name and goes with the process.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "network namespace (root needed): %v\n", err)
		os.Exit(1)
	}
}

// cable makes a veth pair NAME-i and NAME-t that goes with the test.
func cable(t testing.TB, name string, mtu int) (initiator, target string) {
	t.Helper()
	initiator, target = name+"-i", name+"-t"
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = initiator, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: target, PeerMTU: uint32(mtu)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	for _, end := range []string{initiator, target} {
		setUp(t, end, true)
	}
	for _, end := range []string{initiator, target} {
		eventually(t, end+" has a carrier", func() bool {
			l, err := netlink.LinkByName(end)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
	return initiator, target
}

func setUp(t testing.TB, name string, up bool) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil && up {
		err = netlink.LinkSetUp(l)
	} else if err == nil {
		err = netlink.LinkSetDown(l)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func packetShard(t testing.TB, runDir string, interfaces ...string) *Shard {
	t.Helper()
	s, err := NewShard(ShardConfig{Index: 1, Interfaces: interfaces, RunDir: runDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// vblade is a running one.
type vblade struct {
	t    testing.TB
	args []string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

func startVblade(t testing.TB, ifname, file string) *vblade {
	t.Helper()
	v := &vblade{t: t, args: []string{"-b", "16", "7", "3", ifname, file}}
	v.start()
	t.Cleanup(v.stop)
	return v
}

func (v *vblade) start() {
	v.t.Helper()
	v.cmd = exec.Command("vblade", v.args...)
	v.cmd.Stdout, v.cmd.Stderr = &v.out, &v.out
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("vblade (package vblade needed): %v", err)
	}
}

func (v *vblade) stop() {
	if v.cmd == nil {
		return
	}
	if err := v.cmd.Process.Kill(); err != nil {
		v.t.Errorf("vblade: %v: %s", err, v.out.String())
	}
	_ = v.cmd.Wait() // killed, as it says
	v.cmd = nil
}

func diskFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// load writes and reads at random with many requests at once, each goroutine in its own part of the disk, and compares.
func load(t *testing.T, d *Device, workers, rounds int) {
	t.Helper()
	sectors := int(d.Info().Sectors) / workers
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 7))
			want := make([]byte, sectors*aoe.SectorSize)
			base := uint64(w * sectors)
			fill := &Request{Op: OpWrite, LBA: base, Sectors: uint32(sectors), Data: want}
			if err := do(t, d, fill); err != nil {
				t.Error(err)
				return
			}
			for range rounds {
				n := 1 + dice.IntN(min(256, sectors))
				at := dice.IntN(sectors - n + 1)
				part := want[at*aoe.SectorSize:][:n*aoe.SectorSize]
				if dice.IntN(2) == 0 {
					for i := range part {
						part[i] = byte(dice.Uint32())
					}
					if err := do(t, d, &Request{Op: OpWrite, LBA: base + uint64(at), Sectors: uint32(n), Data: part}); err != nil {
						t.Error(err)
						return
					}
					continue
				}
				got := make([]byte, len(part))
				if err := do(t, d, &Request{Op: OpRead, LBA: base + uint64(at), Sectors: uint32(n), Data: got}); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, part) {
					t.Errorf("worker %d: %d sectors at %d differ", w, n, at)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestVblade(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			ours, theirs := cable(t, "vb", mtu)
			startVblade(t, theirs, diskFile(t, 16<<20))
			d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), DeviceConfig{Addr: testAddr})
			if err != nil {
				t.Fatal(err)
			}
			info := d.Info()
			if info.Flush || info.Session || info.FUA || info.Trim || info.Sectors != 16<<11 || !strings.Contains(info.Model, "vblade") {
				t.Errorf("info %+v", info)
			}
			if p := d.Paths(); len(p) != 1 || p[0].MaxSectors != aoe.MaxSectors(mtu) || p[0].Window > 16 {
				t.Errorf("paths %+v", p)
			}
			load(t, d, 16, 60)
			if err := d.Detach(within(t, 5*time.Second), false); err != nil {
				t.Error(err)
			}
			t.Logf("%+v", d.Stats())
		})
	}
}

// TestVbladeRestart: I/O waits for it, and goes on.
func TestVbladeRestart(t *testing.T) {
	ours, theirs := cable(t, "vr", 9000)
	v := startVblade(t, theirs, diskFile(t, 16<<20))
	d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), DeviceConfig{Addr: testAddr})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		load(t, d, 8, 300)
	}()
	for range 3 {
		time.Sleep(100 * time.Millisecond) // of load, whatever it does just then
		v.stop()
		v.start()
	}
	<-done
	if d.Stats().Errors != 0 {
		t.Errorf("stats %+v", d.Stats())
	}
}

func TestDiscoverVblade(t *testing.T) {
	ours, theirs := cable(t, "vd", 9000)
	startVblade(t, theirs, diskFile(t, 1<<20))
	eventually(t, "vblade is found", func() bool {
		found, err := Discover(context.Background(), DiscoverConfig{Interfaces: []string{ours}, Wait: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return len(found) == 1 && found[0].Addr == testAddr && found[0].Sectors == 2048 && found[0].BufferCount == 16 &&
			found[0].Interface == ours && found[0].SectorCount == 17
	})
}

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

// streams keeps requests in flight, each submitted again from its completion.
type streams struct {
	d    *Device
	left int
	out  int
	done chan struct{}
	err  error
}

func (s *streams) Complete(r *Request) {
	s.out--
	if r.Err != nil {
		s.err = r.Err
	}
	if s.left > 0 && s.err == nil {
		s.left--
		s.out++
		r.LBA = (r.LBA + 8*977) % (8 << 11)
		s.d.Submit(r)
	}
	if s.out == 0 {
		close(s.done)
	}
}

func BenchmarkOurTarget(b *testing.B) {
	ours, theirs := cable(b, "bt", 9000)
	newShelf(b, []string{theirs}, ours)
	d, err := packetShard(b, "", ours).Attach(context.Background(), testDevice())
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, d)
}

func BenchmarkVblade(b *testing.B) {
	ours, theirs := cable(b, "bv", 9000)
	startVblade(b, theirs, diskFile(b, 16<<20))
	d, err := packetShard(b, "", ours).Attach(context.Background(), DeviceConfig{Addr: testAddr})
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, d)
}

func benchmark(b *testing.B, d *Device) {
	for _, tc := range []struct {
		name    string
		op      Op
		sectors uint32
		depth   int
	}{{"read4k1", OpRead, 8, 1}, {"write4k1", OpWrite, 8, 1}, {"read4k32", OpRead, 8, 32}, {"write4k32", OpWrite, 8, 32}, {"read128k8", OpRead, 256, 8}, {"write128k8", OpWrite, 256, 8}} {
		b.Run(tc.name, func(b *testing.B) {
			depth := min(tc.depth, b.N)
			s := &streams{d: d, left: b.N - depth, out: depth, done: make(chan struct{})}
			before := d.Stats().Retransmits
			b.SetBytes(int64(tc.sectors) * aoe.SectorSize)
			b.ReportAllocs()
			b.ResetTimer()
			if err := d.Shard().Do(context.Background(), func() {
				for i := range depth {
					d.Submit(&Request{Op: tc.op, LBA: uint64(i) * 8, Sectors: tc.sectors, Data: make([]byte, tc.sectors*aoe.SectorSize), Done: s})
				}
			}); err != nil {
				b.Fatal(err)
			}
			<-s.done
			if s.err != nil {
				b.Fatal(s.err)
			}
			b.ReportMetric(float64(d.Stats().Retransmits-before)/float64(b.N), "resent/op")
		})
	}
}
