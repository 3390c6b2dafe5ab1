//go:build vm

package powercut

import (
	"errors"
	"fmt"
	"testing"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestPowerCut: power cuts of the target's host under a load of fsyncs, on either kind of file system: one that writes behind the target's back, and one whose
// cache the target writes to in its loop. Whatever fsync promised is there, and a loss is told of.
func TestPowerCut(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t, fs, lab.Binary())
			w, err := newLoad(r.device, r.dice.Uint64())
			if err != nil {
				t.Fatal(err)
			}
			for n := full(34, 3); r.cuts < n || r.harmless() && r.cuts < 4*n; {
				if err := r.round(w); err != nil {
					t.Fatalf("cut %d: %v", r.cuts, err)
				}
			}
			r.report(sum(w.synced()))
		})
	}
}

// TestNoFlush: the same test finds out a target that answers a flush without making anything durable.
func TestNoFlush(t *testing.T) {
	r := newRig(t, "ext4", lab.Binary()+"-noflush")
	w, err := newLoad(r.device, r.dice.Uint64())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		err := r.round(w)
		if errors.Is(err, errLost) {
			figure(t, "a target that does not flush was found out at cut %d: %v", r.cuts, err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("a target that does not flush got through %d cuts", r.cuts)
}

// round cuts the power once and checks what is left: in the middle of the load, or, every third time, when all that was written had been flushed.
func (r *rig) round(w *load) error {
	r.t.Helper()
	atRest := r.cuts%3 == 2
	before := w.synced()
	w.start()
	enough := uint64(2 + r.dice.IntN(20))
	r.l.Eventually(patience, "load", func() error {
		for i, n := range w.synced() {
			if n < before[i]+enough {
				return fmt.Errorf("writer %d has %d fsyncs", i, n-before[i])
			}
		}
		return nil
	})
	if atRest {
		if failed, err := w.end(); err != nil || failed > 0 {
			return fmt.Errorf("%d writers were told of a loss before the cut: %w", failed, err)
		}
	}
	r.cut([]float64{0, 0.5, 0.9}[r.dice.IntN(3)])
	failed, err := w.end()
	if err != nil {
		return err
	}
	switch {
	case failed > 0 && atRest:
		return fmt.Errorf("%d writers were told of a loss though nothing could be lost", failed)
	case failed > 0:
		r.latched++
		r.latchedFor(2)
		r.again()
		w.path = r.device
		for _, writer := range w.writers {
			writer.path = r.device
		}
	}
	promised, lost, err := w.check()
	if err == nil && failed == 0 && lost > 0 {
		err = fmt.Errorf("%w: %d blocks lost and nobody was told", errLost, lost)
	}
	r.promised += promised
	r.lost += lost
	return err
}

// harmless says whether no cut has lost anything yet, so that nothing is shown.
func (r *rig) harmless() bool {
	_, forgot, _, _ := r.disk.counts()
	return r.latched == 0 || forgot == 0
}

// report prints what the cuts did.
func (r *rig) report(synced uint64) {
	flushes, forgot, _, _ := r.disk.counts()
	figure(r.t, "%d power cuts, each %.1f s until the target served again: %d fsyncs returned 0, %d promised blocks were there, %d unpromised ones were lost; %d times the loss was told and the volume staged again; the disk flushed %d times and forgot %d blocks",
		r.cuts, r.cutting.Seconds()/float64(r.cuts), synced, r.promised, r.lost, r.latched, flushes, forgot)
	if r.harmless() {
		r.t.Errorf("no cut lost anything: this shows nothing")
	}
}

func sum(ns [writers]uint64) (n uint64) {
	for _, x := range ns {
		n += x
	}
	return n
}
