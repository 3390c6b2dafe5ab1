//go:build vm

package powercut

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// ext4Checkpoint is EXT4_IOC_CHECKPOINT (include/uapi/linux/ext4.h): write to their places what the journal holds, then empty it.
const ext4Checkpoint = 0x4004662b

// TestCheckpoint cuts the power at one flush of the target's disk after the other during a checkpoint: one of them is after a journal's blocks were
// written to their places, and is to make them durable there. jbd2 does not heed that it fails (jbd2_cleanup_journal_tail,
// fs/jbd2/checkpoint.c): if it could write that the journal is empty, the blocks would be nowhere.
func TestCheckpoint(t *testing.T) {
	r := newRig(t, "ext4", lab.Binary())
	dir := filepath.Join(r.l.Dir(), "staged")
	r.l.Run("mkdir", dir)
	r.l.Run("mkfs.ext4", "-q", r.device)
	w := &filesWriter{dir: dir}
	mounted := false
	t.Cleanup(func() {
		if mounted {
			_, _ = r.l.TryFor(patience, "umount", dir) // the test has failed
		}
	})
	const flushes = 6 // a checkpoint does four; more when the disk's own file system adds some
	for n := full(3*flushes, flushes); r.cuts < n || r.harmless() && r.cuts < 3*n; {
		r.l.Run("mount", r.device, dir)
		mounted = true
		if err := w.replaceSome(2 * filesPerWriter); err != nil {
			t.Fatal(err)
		}
		r.disk.freezeAtFlush(1 + r.cuts%flushes)
		checkpoint := make(chan error, 1)
		go func() { checkpoint <- emptyJournal(dir) }()
		r.l.Eventually(patience, "the checkpoint or a cut in it", func() error {
			if !r.disk.isFrozen() && len(checkpoint) == 0 {
				return errors.New("neither")
			}
			return nil
		})
		r.cut(0)
		if err := <-checkpoint; err != nil {
			r.latched++
		}
		r.l.Run("umount", dir)
		mounted = false
		r.again()
		r.fsck("-p")
		r.l.Run("mount", r.device, dir)
		mounted = true
		if err := w.check(); err != nil {
			t.Fatalf("cut %d, %d checkpoints failed: %v", r.cuts, r.latched, err)
		}
		r.l.Run("umount", dir)
		mounted = false
		r.fsck("-fn")
	}
	figure(t, "%d power cuts in checkpoints of a journal: %d checkpoints failed, each of %d promised files was there", r.cuts, r.latched, filesPerWriter)
	if r.harmless() {
		t.Error("no cut lost anything: this shows nothing")
	}
}

// replaceSome replaces n files and makes each durable.
func (w *filesWriter) replaceSome(n uint64) error {
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- w.run(&stop) }()
	w.replaced.Store(0)
	for w.replaced.Load() < n && len(ended) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	return <-ended
}

// emptyJournal has the file system at dir do a checkpoint.
func emptyJournal(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(int(d.Fd()), ext4Checkpoint, 0), d.Close())
}
