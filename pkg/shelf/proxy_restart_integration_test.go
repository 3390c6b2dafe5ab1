//go:build integration

package shelf_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

var restartRounds = flag.Int("restart-rounds", 1, "how often TestVbladeRestarts goes through a volume's life; 10 in make test-static")

// atReady is a store that does something just before a volume is said to be made, when its claim is on the wire; the controller then crashes.
type atReady struct {
	volume.Store
	do func()
}

func (s *atReady) UpdateVolume(ctx context.Context, r *volume.Record) error {
	if r.Phase != volume.PhaseReady || s.do == nil {
		return s.Store.UpdateVolume(ctx, r)
	}
	s.do()
	s.do = nil
	return errCrash
}

// rivals watches a LUN that a volume has: nobody else gets it, whatever its vblade has forgotten.
type rivals struct {
	t     *testing.T
	p     *pool
	asked int
}

// ask has another claim try.
func (r *rivals) ask(when string) {
	r.t.Helper()
	r.asked++
	if v, err := r.p.service.Create(r.t.Context(), r.p.request("rival", 2*mib)); !errors.Is(err, volume.ErrNoSpace) {
		r.t.Fatalf("%s: a second claim asks for the only LUN: %+v, %v", when, v, err)
	}
	slots, err := r.p.store.ListSlots(r.t.Context())
	must(r.t, err)
	if len(slots) != 1 || slots[0].VolumeName != "data" {
		r.t.Fatalf("%s: owners %+v", when, slots)
	}
}

// TestVbladeRestarts: the only LUN's vblade is killed and started between the claim on the wire and the end of provisioning, between
// provisioning and publishing, during use, and after deletion. Another claim asks for the LUN each time.
func TestVbladeRestarts(t *testing.T) {
	bridge(t, "proxy", "storage", "n1", "n2")
	disk := startVblade(t, 0, make([]byte, 4*mib))
	p := realPool(t, 0)
	other := &rivals{t: t, p: p}
	restarts := 0
	restart := func() { disk.restart(); restarts++ }
	for round := range *restartRounds {
		v := restartWhileMade(t, p, other, restart)
		handle, pattern := v.ID.String(), bytes.Repeat([]byte{byte(0x11 + round)}, 64*aoe.SectorSize)
		restart()
		other.ask("between provisioning and publishing")
		must(t, publish(t, p.service, handle, "n1"))

		first := node(t, 1, "n1", v)
		must(t, io(t, first, initiator.OpWrite, pattern))
		restart()
		other.ask("in use")
		must(t, io(t, first, initiator.OpWrite, pattern))
		got := make([]byte, len(pattern))
		if must(t, io(t, first, initiator.OpRead, got)); !bytes.Equal(got, pattern) {
			t.Fatalf("round %d: the node reads other data than it wrote", round)
		}
		must(t, first.Detach(t.Context(), true))
		eventually(t, "n1 is taken off", func() bool { return p.service.Unpublish(t.Context(), handle, "n1") == nil })
		other.ask("taken off")

		eventually(t, "deletion", func() bool { return p.service.Delete(t.Context(), handle) == nil })
		restart() // after deletion: now the LUN is anybody's, and blank
		if b, err := os.ReadFile(disk.file); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
			t.Fatalf("round %d: data are left after the deletion: %v", round, err)
		}
		var next *volume.Volume
		eventually(t, "the next claim gets the LUN", func() bool {
			var err error
			next, err = p.service.Create(t.Context(), p.request("next", 2*mib))
			return err == nil
		})
		if next.ID.Addr != v.ID.Addr || next.ID.Generation == v.ID.Generation {
			t.Fatalf("round %d: the next volume is %s after %s", round, next.ID, v.ID)
		}
		eventually(t, "deletion", func() bool { return p.service.Delete(t.Context(), next.ID.String()) == nil })
	}
	t.Logf("%d rounds: vblade was killed %d times, %d claims for a LUN that was taken were all refused", *restartRounds, restarts, other.asked)
}

// restartWhileMade makes the volume; when its claim is on the wire vblade is killed and started, and the controller crashes.
func restartWhileMade(t *testing.T, p *pool, other *rivals, restart func()) *volume.Volume {
	t.Helper()
	store := &atReady{Store: p.store}
	restarted := false
	store.do = func() {
		restart()
		restarted = true
		other.ask("between claim and the end of provisioning")
	}
	service, closeIt := p.controller(store)
	defer closeIt()
	eventually(t, "the controller crashes with the claim on the wire", func() bool {
		_, err := service.Create(t.Context(), p.request("data", 2*mib))
		return errors.Is(err, errCrash)
	})
	if !restarted {
		t.Fatal("nothing was restarted")
	}
	other.ask("the controller has crashed")
	var v *volume.Volume
	eventually(t, "the next controller ends what the first began", func() bool {
		var err error
		v, err = p.service.Create(t.Context(), p.request("data", 2*mib))
		return err == nil
	})
	return v
}
