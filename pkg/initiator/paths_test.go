package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

// writesOf has count called for every frame of a write that is sent.
func (w *world) onWrites(f func(aoe.Frame) (arrives bool)) {
	w.net.SetTap(func(b []byte) bool {
		frame := aoe.Frame(b)
		if frame.IsResponse() || frame.Command() != aoe.CommandATA || frame[27] != byte(aoe.ATAWriteExt) {
			return true
		}
		return f(frame)
	})
}

// TestRetransmissionIsTheSameFrame: same tag and bytes on the same path.
func TestRetransmissionIsTheSameFrame(t *testing.T) {
	w := newWorld(t, 1, lan, nil)
	w.attach()
	var sent [][]byte
	w.onWrites(func(f aoe.Frame) bool {
		sent = append(sent, bytes.Clone(f))
		return len(sent) > 1
	})
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 2 || !bytes.Equal(sent[0], sent[1]) {
		t.Errorf("%d frames sent, equal %v", len(sent), len(sent) == 2 && bytes.Equal(sent[0], sent[1]))
	}
}

// TestOtherPathGetsACopy: same tag, other addresses, and the first frame is left alone (which the network watches).
func TestOtherPathGetsACopy(t *testing.T) {
	profile := lan
	profile.ReleaseDelay = 10 * time.Second
	w := newWorld(t, 2, profile, nil)
	w.plug(ourMAC2)
	w.attach()
	w.until(time.Second, func() bool { return len(w.core.Paths(nil)) == 2 && w.core.Paths(nil)[1].State == PathUp })
	var sent [][]byte
	w.onWrites(func(f aoe.Frame) bool {
		sent = append(sent, bytes.Clone(f))
		return f.Src() != aoe.Frame(sent[0]).Src()
	})
	var c waiter
	r := Request{Op: OpWrite, Sectors: 8, Data: pattern(1, 8), Done: &c}
	w.core.Submit(w.now, &r)
	w.until(time.Second, func() bool { return len(sent) == 1 })
	w.net.Block(aoe.Frame(sent[0]).Src(), targetMAC)
	if !w.until(10*time.Second, func() bool { return c.done == 1 }) || r.Err != nil {
		t.Fatalf("done %d, %v", c.done, r.Err)
	}
	last := aoe.Frame(sent[len(sent)-1])
	if first := aoe.Frame(sent[0]); first.Src() == last.Src() || first.Tag() != last.Tag() {
		t.Errorf("first from %s with %#x, last from %s with %#x", first.Src(), first.Tag(), last.Src(), last.Tag())
	}
}

// TestJumboFallback: a switch on the way drops long frames without a word.
func TestJumboFallback(t *testing.T) {
	for _, tc := range []struct{ pathMTU, want int }{{9000, 17}, {8300, 16}, {4200, 8}, {1500, 2}} {
		profile := lan
		profile.PathMTU = tc.pathMTU
		w := newWorld(t, 3, profile, nil)
		w.attach()
		if got := w.core.Paths(nil)[0].MaxSectors; got != tc.want {
			t.Errorf("path MTU %d: %d sectors, want %d", tc.pathMTU, got, tc.want)
		}
		if err := w.write(0, pattern(1, 100)); err != nil {
			t.Error(err)
		}
	}
}

// TestJumboStopsGettingThrough in the middle of everything, and comes back.
func TestJumboStopsGettingThrough(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		w := newWorld(t, 4, lan, func(c *CoreConfig) {
			if foreign {
				c.Generation = ""
			}
		})
		if foreign {
			w.target.asVblade()
		}
		w.attach()
		small := lan
		small.PathMTU = 1500
		w.net.SetProfile(small)
		data := pattern(1, 200)
		if err := w.write(0, data); err != nil || !bytes.HasPrefix(w.target.disk, data) {
			t.Fatalf("write: %v", err)
		}
		if got := w.core.Paths(nil)[0].MaxSectors; got != 2 {
			t.Errorf("%d sectors over a path of 1500 bytes", got)
		}
		w.net.SetProfile(lan)
		w.run(2 * time.Minute)
		if got := w.core.Paths(nil)[0].MaxSectors; got != 17 {
			t.Errorf("%d sectors two minutes after the path got better", got)
		}
	}
}

// TestTooManySectors: a target that takes fewer than it said.
func TestTooManySectors(t *testing.T) {
	w := newWorld(t, 5, lan, nil)
	w.attach()
	w.target.sectors = 4
	data := pattern(1, 64)
	if err := w.write(0, data); err != nil || !bytes.HasPrefix(w.target.disk, data) {
		t.Fatalf("write: %v", err)
	}
}

// TestLocalLinkOnly: where the target is on this host nothing goes over Ethernet, until the socket is gone.
func TestLocalLinkOnly(t *testing.T) {
	w := newWorld(t, 6, lan, nil)
	w.attach()
	l := w.net.Link(ourMAC2)
	w.links, w.macs = append(w.links, l), append(w.macs, ourMAC2)
	w.core.SetLink(w.now, 1, LinkInfo{Name: "local", MAC: ourMAC2, MTU: 9000, Local: true})
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	if paths := w.core.Paths(nil); len(paths) != 1 || paths[0].Interface != "local" {
		t.Errorf("paths %+v", paths)
	}
	w.core.DropLink(w.now, 1)
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	if paths := w.core.Paths(nil); len(paths) != 1 || paths[0].Interface == "local" {
		t.Errorf("paths %+v", paths)
	}
}

// identityChanges is what makes a target another volume.
func TestIdentityIsProvedAgain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		after func(w *world)
	}{
		{"after a silence", func(w *world) { w.run(6 * time.Second) }},
		{"after an advertisement", func(w *world) { w.target.advertise(); w.run(200 * time.Millisecond) }},
		{"every minute", func(w *world) {
			for range 70 {
				if _, err := w.read(0, 1); err != nil {
					w.t.Fatal(err)
				}
				w.run(time.Second)
				if !w.core.anyUp() {
					return
				}
			}
		}},
	} {
		for _, generation := range []string{"", testGeneration} {
			t.Run(tc.name+", generation "+generation, func(t *testing.T) {
				w := newWorld(t, 7, lan, func(c *CoreConfig) { c.Generation = generation })
				w.target.managed = false
				w.attach()
				if err := w.write(0, pattern(1, 8)); err != nil {
					t.Fatal(err)
				}
				w.target.serial = "qrstuvwxyz234567"
				executed := w.target.executed
				tc.after(w)
				var c waiter
				r := Request{Op: OpWrite, Sectors: 8, Data: pattern(2, 8), Done: &c}
				w.core.Submit(w.now, &r)
				w.run(10 * time.Second)
				if c.done != 0 || w.target.executed != executed {
					t.Fatalf("done %d (%v): the wrong volume was written %d times", c.done, r.Err, w.target.executed-executed)
				}
				if s := w.core.State(); s.Phase != PhaseStalled || !errors.Is(s.Err, ErrIdentity) {
					t.Errorf("state %+v", s)
				}
				w.target.serial = testGeneration
				if !w.until(10*time.Second, func() bool { return c.done == 1 }) || r.Err != nil {
					t.Errorf("after the volume was back: done %d, %v", c.done, r.Err)
				}
			})
		}
	}
}

// TestGrowth: the target's new size is seen when it is asked, although an answer from before the growth is on its way; and an old answer
// that comes later takes nothing back.
func TestGrowth(t *testing.T) {
	w := newWorld(t, 8, lan, nil)
	w.attach()
	small := w.target.disk
	answered := false
	w.net.SetTap(func(b []byte) bool {
		f := aoe.Frame(b)
		answered = answered || f.IsResponse() && f.Command() == aoe.CommandATA && len(f) >= aoe.ATALen+aoe.IdentifyLen
		return true
	})
	w.core.Reconfirm(w.now)
	if !w.until(time.Second, func() bool { return answered }) {
		t.Fatal("nobody was asked")
	}
	w.target.disk = append(bytes.Clone(small), make([]byte, 1<<20)...)
	before := w.core.Proofs()
	w.core.Reconfirm(w.now)
	if !w.until(time.Second, func() bool { return w.core.Proofs() != before }) {
		t.Fatal("no proof came")
	}
	if got := w.core.Info().Sectors; got != 4096 {
		t.Errorf("%d sectors", got)
	}
	if err := w.write(4095, pattern(1, 1)); err != nil {
		t.Error(err)
	}
	large := w.target.disk
	w.target.disk = small
	w.core.Reconfirm(w.now)
	w.run(time.Second)
	w.target.disk = large
	if err := w.write(4094, pattern(2, 1)); err != nil {
		t.Errorf("after an answer from before the growth: %v", err)
	}
}

// TestWindowIsTheTargets: never more frames outstanding than it can hold.
func TestWindowIsTheTargets(t *testing.T) {
	w := newWorld(t, 9, linktest.Profile{Delay: time.Millisecond}, nil)
	w.target.buffers = 5
	w.attach()
	var c waiter
	r := Request{Op: OpWrite, Sectors: 2048, Data: pattern(1, 2048), Done: &c}
	w.core.Submit(w.now, &r)
	most := 0
	w.until(time.Minute, func() bool {
		most = max(most, w.core.table.used())
		return c.done == 1
	})
	if most != 5 {
		t.Errorf("%d frames outstanding at most, want 5", most)
	}
}

// TestLossHalvesTheWindow, once, however many frames of it were lost.
func TestLossHalvesTheWindow(t *testing.T) {
	p := path{bufferCount: 64}
	p.resetWindow()
	p.cwnd, p.cut = 40, 0
	for range 10 {
		p.shrink(100, 50)
	}
	if p.cwnd != 20 || p.backoff != 1 {
		t.Errorf("window %d, backoff %d", p.cwnd, p.backoff)
	}
	for range 500 {
		p.inflight = p.cwnd
		p.grow()
	}
	if p.cwnd < 25 || p.cwnd > 64 {
		t.Errorf("window %d after 500 answers", p.cwnd)
	}
}

func TestTimeouts(t *testing.T) {
	p := path{}
	if p.rto() != rtoFirst {
		t.Errorf("first %v", p.rto())
	}
	for range 50 {
		p.measure(100 * time.Microsecond)
	}
	if p.rto() != rtoMin+100*time.Microsecond {
		t.Errorf("on a quick path %v", p.rto())
	}
	for range 50 {
		p.measure(400 * time.Millisecond)
	}
	if p.rto() < p.srtt+rtoMin || p.srtt < 390*time.Millisecond || p.rto() > time.Second {
		t.Errorf("on a slow path %v", p.rto())
	}
	p.backoff = 8
	if p.rto() != rtoMax {
		t.Errorf("backed off %v", p.rto())
	}
}

// TestChangedMAC: what was sent from the old address is sent again from the new one.
func TestChangedMAC(t *testing.T) {
	w := newWorld(t, 10, lan, nil)
	w.attach()
	kept := w.keepWrites(0)
	var c waiter
	data := pattern(1, 40)
	r := Request{Op: OpWrite, Sectors: 40, Data: data, Done: &c}
	w.core.Submit(w.now, &r)
	w.transmit()
	if len(*kept) == 0 {
		t.Fatal("nothing was sent")
	}
	w.net.SetTap(nil)
	l := w.net.Link(ourMAC2)
	if err := w.links[0].Close(); err != nil {
		t.Fatal(err)
	}
	w.links[0] = l
	w.core.SetLink(w.now, 0, LinkInfo{Name: l.Name(), MAC: ourMAC2, MTU: l.MTU()})
	if !w.until(5*time.Second, func() bool { return c.done == 1 }) || r.Err != nil || !bytes.HasPrefix(w.target.disk, data) {
		t.Errorf("done %d, %v", c.done, r.Err)
	}
}

// TestManyAddresses: a flood of forged answers, and a target that comes back with a new MAC each time.
func TestManyAddresses(t *testing.T) {
	w := newWorld(t, 11, lan, func(c *CoreConfig) { c.Generation = "" })
	w.target.asVblade()
	w.attach()
	b := make([]byte, aoe.MinFrameLen)
	for i := range 1000 {
		h := aoe.Header{Dst: aoe.Broadcast, Src: aoe.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, Response: true, Addr: testAddr}
		aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 16})
		w.core.Receive(w.now, 0, b)
		w.transmit()
	}
	if err := w.write(0, pattern(1, 8)); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		old := w.target.mac
		w.target.mac = aoe.MAC{2, 2, 0, 0, 0, byte(i)}
		if err := w.target.link.Close(); err != nil {
			t.Fatal(err)
		}
		w.target.link = w.net.Link(w.target.mac)
		w.run(70 * time.Second)
		if err := w.write(0, pattern(byte(i), 8)); err != nil {
			t.Fatalf("after the move from %s: %v", old, err)
		}
	}
	if n := len(w.core.Paths(nil)); n > 8 {
		t.Errorf("%d paths are remembered", n)
	}
}
