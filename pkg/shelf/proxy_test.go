package shelf_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const mib = 1 << 20

// TestPoolTakesTheBlankOne: of one with a file system on it, one too small and a blank one; a second claim is told why not of each.
func TestPoolTakesTheBlankOne(t *testing.T) {
	targets := vblades(8192, 1024, 8192)
	p := newPool(t, false, targets...)
	targets[0].Put(2, 1) // anything
	v := p.create("data", 2*mib)
	if v.ID.Addr != targets[2].Addr || v.SizeBytes != 4*mib {
		t.Fatalf("took %+v", v)
	}
	want := aoe.Claim{Generation: string(v.ID.Generation), Owner: "team/data"}.String()
	if got := targets[2].Config(); got != want || !slices.Equal(targets[2].Reserved(), []aoe.MAC{shelf.Sentinel}) {
		t.Errorf("config string %q, reserved to %v", got, targets[2].Reserved())
	}
	_, err := p.service.Create(t.Context(), p.request("more", 2*mib))
	if !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("second claim: %v", err)
	}
	for _, reason := range []string{"e9.0 is not blank: its first MiB has data", "e9.1 has 512 KiB only", "e9.2 belongs to volume data"} {
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("%q is not in: %v", reason, err)
		}
	}
	if targets[0].Used() != 1 || targets[0].Config() != "" || len(targets[0].Reserved()) != 0 {
		t.Errorf("the refused LUN is not as it was: %d sectors, %q, %v", targets[0].Used(), targets[0].Config(), targets[0].Reserved())
	}
	// Never one that is too small, and none without being named.
	if _, err := p.service.Create(t.Context(), p.request("huge", 16*mib)); !errors.Is(err, volume.ErrOutOfRange) {
		t.Errorf("too large: %v", err)
	}
	unnamed := p.request("unnamed", mib)
	unnamed.Parameters.Shelf = nil
	if _, err := p.service.Create(t.Context(), unnamed); err == nil || !strings.Contains(err.Error(), "names it") {
		t.Errorf("a class that names no shelf: %v", err)
	}
}

// TestPoolLeavesOthersAlone: what has a config string or a reservation is somebody's.
func TestPoolLeavesOthersAlone(t *testing.T) {
	targets := vblades(2048, 2048)
	targets[0].SetConfig("somebody's")
	targets[1].SetReserved(otherMAC)
	for _, wipe := range []bool{false, true} {
		p := newPool(t, wipe, targets...)
		if _, err := p.service.Create(t.Context(), p.request("data", mib)); !errors.Is(err, volume.ErrNoSpace) {
			t.Errorf("wipe %v: %v", wipe, err)
		}
		if targets[0].Config() != "somebody's" || targets[1].Config() != "" || !slices.Equal(targets[1].Reserved(), []aoe.MAC{otherMAC}) {
			t.Errorf("wipe %v: %q, %v", wipe, targets[0].Config(), targets[1].Reserved())
		}
	}
}

// TestPoolOfTwoClusters is refused where a restart would make the other's volume look free, and allowed where claims are kept.
func TestPoolOfTwoClusters(t *testing.T) {
	theirs := aoe.Claim{Generation: "abcdefghijklmn23", Owner: "other/data"}.String()
	for model, refused := range map[string]bool{"Coraid EtherDrive vblade": true, "ggaoed": false} {
		targets := vblades(2048, 2048)
		targets[0].Model, targets[1].Model = model, model
		targets[1].SetConfig(theirs)
		p := newPool(t, false, targets...)
		_, err := p.service.Create(t.Context(), p.request("data", mib))
		if refused {
			if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "e9.1 has the claim") || targets[0].Config() != "" {
				t.Errorf("%s: %v, config string %q", model, err, targets[0].Config())
			}
			targets[1].SetConfig("") // what it answered last still says so
			v := p.create("data", mib)
			targets[1].SetConfig(theirs) // since it was looked at last
			_, err = p.service.Create(t.Context(), p.request("more", mib))
			if !errors.Is(err, volume.ErrNoSpace) || targets[1].Config() != theirs {
				t.Errorf("claimed meanwhile: %v, config string %q", err, targets[1].Config())
			}
			p.finish(func() error { return p.service.Delete(t.Context(), v.ID.String()) })
			p.look()
			_, err = p.service.Create(t.Context(), p.request("more", mib))
			if !errors.Is(err, volume.ErrNoSpace) || targets[0].Config() != "" {
				t.Errorf("beside a claim that came meanwhile: %v, config string %q", err, targets[0].Config())
			}
			targets[1].SetConfig("")
			_, err = p.service.Create(t.Context(), p.request("data", mib))
		}
		if err != nil {
			t.Errorf("%s: %v", model, err)
		}
	}
}

// TestPoolFences: only the node that has the volume, across restarts of the target.
func TestPoolFences(t *testing.T) {
	targets := vblades(2048)
	p := newPool(t, false, targets...)
	v := p.create("data", mib)
	handle, d := v.ID.String(), targets[0]
	claim := d.Config()
	reserved := func(when string, want aoe.MAC) {
		t.Helper()
		if got := d.Reserved(); !slices.Equal(got, []aoe.MAC{want}) || d.Config() != claim {
			t.Errorf("%s: reserved to %v, config string %q", when, got, d.Config())
		}
	}
	for _, tc := range []struct {
		node string
		mac  aoe.MAC
	}{{"n1", nodeMAC}, {"n2", otherMAC}} {
		published, err := p.service.Publish(t.Context(), handle, tc.node, false)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{targetsMAC.String()}; !slices.Equal(published.MACs, want) {
			t.Errorf("the node is told to look at %v, want %v", published.MACs, want)
		}
		reserved("published", tc.mac)
		d.Restart()
		p.look()
		reserved("restarted while published", tc.mac)
		check(t, p.service.Unpublish(t.Context(), handle, tc.node))
		reserved("unpublished", shelf.Sentinel)
		d.Restart()
		check(t, p.service.Unpublish(t.Context(), handle, tc.node))
		reserved("restarted, unpublished again", shelf.Sentinel)
		d.Restart()
		p.look()
		reserved("restarted while unpublished", shelf.Sentinel)
	}
	d.SetDown(true)
	if _, err := p.service.Publish(t.Context(), handle, "n1", false); !errors.Is(err, volume.ErrUnavailable) {
		t.Errorf("published on a target that does not answer: %v", err)
	}
}

// TestPoolWithoutReservations says that it cannot fence.
func TestPoolWithoutReservations(t *testing.T) {
	targets := vblades(2048)
	targets[0].NoReserve = true
	p := newPool(t, false, targets...)
	v := p.create("data", mib)
	if _, err := p.service.Publish(t.Context(), v.ID.String(), "n1", false); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.events, "Warning NotFenced") {
		t.Errorf("events %q", p.events)
	}
	check(t, p.service.Unpublish(t.Context(), v.ID.String(), "n1"))
}

// TestPoolRestoresWhatIsConfirmed: while the controller is taking a node off, a target that was restarted does not let it in again.
func TestPoolRestoresWhatIsConfirmed(t *testing.T) {
	targets := vblades(2048)
	p := newPool(t, false, targets...)
	v := p.create("data", mib)
	if _, err := p.service.Publish(t.Context(), v.ID.String(), "n1", false); err != nil {
		t.Fatal(err)
	}
	rec := record(t, p, "data")
	rec.Admitted[0].Confirmed = false
	check(t, p.store.UpdateVolume(t.Context(), rec))
	targets[0].Restart()
	p.look()
	if got := targets[0].Reserved(); slices.Contains(got, nodeMAC) || targets[0].Config() != "" {
		t.Errorf("reserved to %v, config string %q", got, targets[0].Config())
	}
	check(t, p.service.Unpublish(t.Context(), v.ID.String(), "n1"))
	if got := targets[0].Reserved(); !slices.Equal(got, []aoe.MAC{shelf.Sentinel}) {
		t.Errorf("taken off, and reserved to %v", got)
	}
}

// TestPoolScrubs what a volume left, also when the target was restarted; then the LUN is free.
func TestPoolScrubs(t *testing.T) {
	for _, restart := range []bool{false, true} {
		targets := vblades(8192)
		p := newPool(t, false, targets...)
		d := targets[0]
		v := p.create("data", mib)
		for lba := range uint64(8192) {
			d.Put(lba, 7)
		}
		if restart {
			d.Restart()
		}
		p.finish(func() error { return p.service.Delete(t.Context(), v.ID.String()) })
		if d.Used() != 0 || d.Config() != "" || !slices.Equal(d.Reserved(), []aoe.MAC{shelf.Sentinel}) {
			t.Errorf("restarted %v: %d sectors left, %q, %v", restart, d.Used(), d.Config(), d.Reserved())
		}
		p.look()
		if v := p.create("next", mib); v.ID.Addr != d.Addr {
			t.Errorf("next is at %s", v.ID.Addr)
		}
	}
}

// TestPoolMarksWhatIsDurable: how far scrubbing is, the config string of a target that keeps it says only after a flush.
func TestPoolMarksWhatIsDurable(t *testing.T) {
	targets := vblades(300000)
	d := targets[0]
	d.Model = "ggaoed"
	p := newPool(t, false, targets...)
	v := p.create("data", mib)
	for _, lba := range []uint64{5000, 131071} {
		d.Put(lba, 7)
	}
	d.Flush()
	d.SetDeafFrom(131072) // 64 MiB
	if err := p.service.Delete(t.Context(), v.ID.String()); !errors.Is(err, volume.ErrPending) {
		t.Fatalf("deleted though a part does not answer: %v", err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c, err := aoe.ParseClaim(d.Config())
		if err == nil && c.Scrubbed == 131072 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("claim %+v, %v", c, err)
		}
	}
	d.CutPower()
	if d.Used() != 0 {
		t.Errorf("%d sectors are back, of which the mark says that they were scrubbed", d.Used())
	}
}

// TestPoolWarnsOfLyingFlush unless the pool is declared synchronous.
func TestPoolWarnsOfLyingFlush(t *testing.T) {
	for model, warns := range map[string]bool{"Coraid EtherDrive vblade": true, "disk": false} {
		targets := vblades(2048)
		targets[0].Model = model
		p := newPool(t, false, targets...)
		v := p.create("data", mib)
		if _, err := p.service.Publish(t.Context(), v.ID.String(), "n1", false); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(p.events, "Warning NotDurable") != warns {
			t.Errorf("%s: events %q", model, p.events)
		}
	}
	targets := vblades(2048)
	p := newPoolWith(t, func(c *shelf.ProxyConfig) { c.Synchronous = true }, targets...)
	v := p.create("data", mib)
	if _, err := p.service.Publish(t.Context(), v.ID.String(), "n1", false); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(p.events, "Warning NotDurable") {
		t.Errorf("synchronous, and events %q", p.events)
	}
}

// TestPoolWipes what is on a LUN, if it was asked to, once.
func TestPoolWipes(t *testing.T) {
	targets := vblades(8192)
	p := newPool(t, true, targets...)
	targets[0].Put(5000, 7)
	v := p.create("data", mib)
	if targets[0].Used() != 0 {
		t.Error("not wiped")
	}
	targets[0].Put(5000, 7)
	if v := p.create("data", mib); v.ID.Addr != targets[0].Addr || targets[0].Used() != 1 {
		t.Error("wiped again")
	}
	if c, err := aoe.ParseClaim(targets[0].Config()); err != nil || c.Generation != string(v.ID.Generation) || c.Scrubbed != 0 {
		t.Errorf("claim %+v, %v", c, err)
	}
}

// TestPoolEndsWiping when a volume is given up before it was made: nothing is written to the LUN once it is free.
func TestPoolEndsWiping(t *testing.T) {
	for _, forgot := range []bool{false, true} {
		targets := vblades(300000)
		d := targets[0]
		p := newPool(t, true, targets...)
		d.SetDeafFrom(1000)
		if _, err := p.service.Create(t.Context(), p.request("data", mib)); !errors.Is(err, volume.ErrPending) {
			t.Fatalf("made though writes are not answered: %v", err)
		}
		rec, err := p.store.GetVolume(t.Context(), "data")
		check(t, err)
		if forgot {
			d.SetConfig("")
		}
		p.finish(func() error { return p.service.Delete(t.Context(), rec.ID.String()) })
		d.Put(2000, 7)
		d.SetDeafFrom(0)
		time.Sleep(2 * time.Second) // a write is sent again sooner
		if d.Used() != 1 || d.Config() != "" {
			t.Errorf("forgot %v: %d sectors of one are left, config string %q", forgot, d.Used(), d.Config())
		}
	}
}

// TestFiftyClaims, two controllers, fifty slots: each slot once.
func TestFiftyClaims(t *testing.T) {
	sizes := make([]uint64, 50)
	for i := range sizes {
		sizes[i] = 128
	}
	targets := vblades(sizes...)
	p := newPool(t, false, targets...)
	second, closeIt := p.controller(p.store)
	defer closeIt()
	controllers := []*provision.Service{p.service, second}
	var calls atomic.Int64
	began := time.Now()
	var group sync.WaitGroup
	var mu sync.Mutex
	owners := map[aoe.Addr]string{}
	for i := range 50 {
		group.Go(func() {
			name := fmt.Sprintf("claim-%d", i)
			for try := 0; ; try++ {
				calls.Add(1)
				v, err := controllers[(i+try)%2].Create(t.Context(), p.request(name, 4096))
				if err != nil && try < 1000 {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", name, err)
				} else if other := owners[v.ID.Addr]; other != "" {
					t.Errorf("%s and %s both have %s", name, other, v.ID.Addr)
				} else {
					owners[v.ID.Addr] = name
				}
				return
			}
		})
	}
	group.Wait()
	if len(owners) != 50 {
		t.Errorf("%d slots taken", len(owners))
	}
	t.Logf("50 claims at once, two controllers: %d slots taken, each once, with %d calls in %v", len(owners), calls.Load(), time.Since(began).Round(time.Millisecond))
}

// TestPoolAdopts a LUN with data on it, which stay as they are until the volume is deleted, under either policy.
func TestPoolAdopts(t *testing.T) {
	for _, wipe := range []bool{false, true} {
		targets := vblades(2048, 2048)
		p := newPool(t, wipe, targets...)
		d := targets[1]
		for lba := range uint64(2048) {
			d.Put(lba, 9)
		}
		request := provision.AdoptRequest{Name: "old", Addr: d.Addr, Claim: "team/old"}
		v, err := p.service.Adopt(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		again, err := p.service.Adopt(t.Context(), request)
		if err != nil || again.ID != v.ID || v.SizeBytes != mib {
			t.Errorf("adopted %+v, again %+v, %v", v, again, err)
		}
		if c, err := aoe.ParseClaim(d.Config()); err != nil || c.Generation != string(v.ID.Generation) || !slices.Equal(d.Reserved(), []aoe.MAC{shelf.Sentinel}) {
			t.Errorf("config string %q, reserved to %v", d.Config(), d.Reserved())
		}
		request.Name = "thief"
		if _, err := p.service.Adopt(t.Context(), request); !errors.Is(err, volume.ErrConflict) {
			t.Errorf("adopted twice: %v", err)
		}
		if _, err := p.service.Publish(t.Context(), v.ID.String(), "n1", false); err != nil {
			t.Error(err)
		}
		check(t, p.service.Unpublish(t.Context(), v.ID.String(), "n1"))
		check(t, p.service.Repair(t.Context()))
		if d.Used() != 2048 {
			t.Errorf("wipe %v: %d sectors of 2048 have data", wipe, d.Used())
		}
		// A LUN that is in use elsewhere is nobody's to adopt.
		targets[0].SetReserved(otherMAC)
		p.look()
		if _, err := p.service.Adopt(t.Context(), provision.AdoptRequest{Name: "used", Addr: targets[0].Addr}); !errors.Is(err, volume.ErrConflict) {
			t.Errorf("adopted what others have reserved: %v", err)
		}
	}
}
