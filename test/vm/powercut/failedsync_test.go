//go:build vm

package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestFailedSync: the disk fails one write of the target's page cache. The kernel tells of that once; the volume's fsync fails from then on, also after the
// target was killed, until the volume is staged again.
func TestFailedSync(t *testing.T) {
	r := newRig(t, "ext4", lab.Binary())
	witness, err := os.OpenFile(r.lunFile(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Close() // before the rig ends
	w, err := newLoad(r.device, 1)
	if err != nil {
		t.Fatal(err)
	}
	magic := binary.LittleEndian.AppendUint64(nil, loadMagic)
	r.disk.spoilNext(func(data []byte) bool { return bytes.HasPrefix(data, magic) })
	w.start()
	r.l.Eventually(patience, "the disk to fail a write", func() error {
		if _, _, spoiled, _ := r.disk.counts(); spoiled == 0 {
			return errors.New("no write of the load yet")
		}
		return nil
	})
	failed, err := w.end()
	if err != nil || failed == 0 {
		t.Fatalf("%d writers were told, %v", failed, err)
	}
	if _, _, spoiled, _ := r.disk.counts(); spoiled != 1 {
		t.Fatalf("the disk failed %d writes, want 1", spoiled)
	}
	r.latchedFor(2)
	// Without our memory of it the second would have succeeded.
	first, second := syscall.Fsync(int(witness.Fd())), syscall.Fsync(int(witness.Fd()))
	if !errors.Is(first, syscall.EIO) || second != nil {
		t.Errorf("the kernel says %v, then %v about the LUN's file; want EIO, then success", first, second)
	}
	r.target.Kill()
	r.target.StartAgain()
	r.latchedFor(2)
	r.again()
	for _, err := range r.syncs(2) {
		if err != nil {
			t.Errorf("fsync of the volume that was staged again: %v", err)
		}
	}
	figure(t, "one failed write of the target's disk: %d of %d writers were told, and 4 more fsyncs failed, 2 of them after the target was killed; the LUN's file alone: %v, then success", failed, writers, first)
}

// lunFile is the target's only LUN.
func (r *rig) lunFile() string {
	r.t.Helper()
	var found []string
	err := filepath.WalkDir(r.storage.LUNs(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() == 64<<20 {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		r.t.Fatalf("LUN files: %v, %v", found, err)
	}
	return found[0]
}
