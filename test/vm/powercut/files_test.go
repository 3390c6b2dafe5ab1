//go:build vm

package powercut

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const filesPerWriter = 24

// TestFiles: the same with a file system on the volume, and small files that are replaced and made durable one after the other. After a loss it is
// staged again, checks clean, and has each file that was promised.
func TestFiles(t *testing.T) {
	r := newRig(t, "ext4", lab.Binary())
	dir := filepath.Join(r.l.Dir(), "staged")
	r.l.Run("mkdir", dir)
	r.l.Run("mkfs.ext4", "-q", r.device)
	files := make([]*filesWriter, 4)
	for i := range files {
		files[i] = &filesWriter{dir: dir, id: i}
	}
	mounted := false
	t.Cleanup(func() {
		if mounted {
			_, _ = r.l.TryFor(patience, "umount", dir) // the test has failed
		}
	})
	for n := full(32, 2); r.cuts < n || r.harmless() && r.cuts < 6*n; {
		r.l.Run("mount", r.device, dir)
		mounted = true
		var stop atomic.Bool
		var group sync.WaitGroup
		for _, w := range files {
			group.Go(func() { w.err = w.run(&stop) })
		}
		r.l.Eventually(patience, "load", func() error {
			for _, w := range files {
				if n := w.replaced.Load(); n < 3 {
					return fmt.Errorf("writer %d has replaced %d files", w.id, n)
				}
			}
			return nil
		})
		time.Sleep(time.Duration(r.dice.IntN(1000)) * time.Millisecond) // so that the cut falls anywhere
		r.cut([]float64{0, 0.5, 0.9}[r.dice.IntN(3)])
		stop.Store(true)
		group.Wait()
		failed := 0
		for _, w := range files {
			if w.err != nil {
				failed++
			}
		}
		r.l.Run("umount", dir)
		mounted = false
		if failed > 0 {
			r.latched++
			r.again()
		}
		r.fsck("-p") // as staging does; it may repair what an aborted journal left
		r.l.Run("mount", r.device, dir)
		mounted = true
		for _, w := range files {
			if err := w.check(); err != nil {
				t.Fatalf("cut %d, %d writers were told of a loss: %v", r.cuts, failed, err)
			}
			w.replaced.Store(0)
		}
		r.l.Run("umount", dir)
		mounted = false
		r.fsck("-fn")
	}
	total := uint64(0)
	for _, w := range files {
		total += w.seq
	}
	figure(t, "%d power cuts: %d files replaced with fsync; %d times the loss was told and the volume staged again, the file system was clean each time and had each promised file", r.cuts, total, r.latched)
	if r.harmless() {
		t.Error("no cut lost anything: this shows nothing")
	}
}

// fsck checks the file system of the volume. That -p repaired something is no failure.
func (r *rig) fsck(mode string) {
	r.t.Helper()
	out, err := r.l.TryFor(patience, "sh", "-c", `e2fsck "$0" "$1" || [ "$0" = -p -a $? = 1 ]`, mode, r.device)
	if err != nil {
		r.t.Fatalf("e2fsck %s after cut %d: %v\n%s", mode, r.cuts, err, out)
	}
}

// filesWriter replaces files of its own; all but its counter belongs to its goroutine.
type filesWriter struct {
	dir           string
	id            int
	seq           uint64
	issued, acked [filesPerWriter]uint64
	err           error

	replaced atomic.Uint64
}

func (w *filesWriter) path(i int) string {
	return filepath.Join(w.dir, fmt.Sprintf("w%d-%d", w.id, i))
}

// content of a version: up to three blocks.
func (w *filesWriter) content(i int, version uint64) []byte {
	line := fmt.Appendf(nil, "writer %d file %d version %d\n", w.id, i, version)
	return bytes.Repeat(line, 1+int(version*37%400))
}

func (w *filesWriter) run(stop *atomic.Bool) error {
	for !stop.Load() {
		w.seq++
		i := int(w.seq % filesPerWriter)
		w.issued[i] = w.seq
		if err := w.replace(i, w.seq); err != nil {
			return err
		}
		w.acked[i] = w.seq
		w.replaced.Add(1)
	}
	return nil
}

// replace writes a new file, makes it durable, puts it in the old one's place and makes that durable.
func (w *filesWriter) replace(i int, version uint64) error {
	temporary := w.path(i) + ".new"
	f, err := os.Create(temporary)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(w.content(i, version)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temporary, w.path(i)); err != nil {
		return err
	}
	d, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return syscall.Fsync(int(d.Fd()))
}

// check reads all files back: each is a whole version, none older than was promised. It takes what it finds for what is there.
func (w *filesWriter) check() error {
	for i := range w.issued {
		got, err := os.ReadFile(w.path(i))
		if os.IsNotExist(err) && w.acked[i] == 0 {
			w.issued[i] = 0
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		found := uint64(0)
		for version := w.issued[i]; version > 0 && version >= w.acked[i] && found == 0; version -= min(version, filesPerWriter) {
			if bytes.Equal(got, w.content(i, version)) {
				found = version
			}
		}
		if found == 0 {
			return fmt.Errorf("%w: %s has %d bytes, %.60q; want version %d to %d", errLost, w.path(i), len(got), got, w.acked[i], w.issued[i])
		}
		w.issued[i], w.acked[i] = found, found // durable: the file system was mounted anew
	}
	return nil
}
