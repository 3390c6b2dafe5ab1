//go:build vm

package powercut

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const (
	// diskSize is the target's disk; XFS wants 300 MiB.
	diskSize = 384 << 20
	// diskDevice is the last NBD device: initiators take the first free one.
	diskDevice = "/dev/nbd15"
	volume     = "e7.1"
	// patience is for what takes a real machine a second.
	patience = 2 * time.Minute
)

// rig is a storage host with a disk of its own, and an initiator that lives through everything.
type rig struct {
	t         *testing.T
	l         *lab.Lab
	fs        string // of the target's disk
	disk      *disk
	plug      *plug
	bootID    string // a file
	storage   *lab.Host
	target    *lab.Target
	initiator *lab.Initiator
	gen       string
	device    string // the volume's
	dice      *mathrand.Rand

	cuts, latched, promised, lost int
	cutting                       time.Duration
}

// newRig attaches a volume of a target, which is the binary, on a disk with the file system fs.
func newRig(t *testing.T, fs, binary string) *rig {
	t.Helper()
	l := lab.New(t)
	r := &rig{t: t, l: l, fs: fs, disk: newDisk(diskSize), storage: l.Host("t"), dice: mathrand.New(mathrand.NewPCG(uint64(time.Now().UnixNano()), 1))}
	r.bootID = filepath.Join(r.storage.Dir, "boot_id")
	l.Run("mkdir", "-p", r.storage.LUNs())
	r.boot(func() { l.Run("mkfs."+fs, "-q", diskDevice) })
	t.Cleanup(r.end)
	// The target sees another boot ID after each cut, as after a real one.
	r.target = r.storage.TargetThrough(7, binary, "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, r.bootID)
	r.initiator = l.Host("a").Initiator()
	out := r.target.MustLun("create", volume, "--size", "64Mi")
	_, rest, ok := strings.Cut(out, volume+"-")
	if !ok || len(rest) < 16 {
		t.Fatalf("lun create says %q, not the handle", out)
	}
	r.gen = rest[:16]
	r.target.MustLun("admit", volume, "--node", "a", "--mac", r.initiator.MAC)
	r.attach()
	return r
}

func (r *rig) attach() {
	r.t.Helper()
	r.device = r.initiator.Attach(volume, "--generation", r.gen)
}

// boot connects the disk and mounts it; prepare, if not nil, is called between.
func (r *rig) boot(prepare func()) {
	r.t.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	text := fmt.Sprintf("%x-%x-%x-%x-%x\n", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
	if err := os.WriteFile(r.bootID, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.l.Eventually(patience, "disk", func() (err error) {
		r.plug, err = r.disk.connect(diskDevice) // busy as long as anybody has it open
		return err
	})
	if prepare != nil {
		prepare()
	}
	r.l.Run("mount", "-t", r.fs, diskDevice, r.storage.LUNs())
}

// cut takes the storage host's power away, with all that its processes, page cache and disk cache had, and gives it back: a share of keep of the disk's
// cache happened to be written already.
func (r *rig) cut(keep float64) {
	r.t.Helper()
	began := time.Now()
	r.disk.freeze() // this is the moment: nothing becomes durable any more
	if err := syscall.Kill(r.target.PID(), syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.disk.drop(r.dice, keep) // the target never sees the errors: it is dead when it comes back from the kernel
	r.unplug()
	r.boot(nil)
	r.target.StartAgain()
	r.cuts++
	r.cutting += time.Since(began)
}

func (r *rig) unplug() {
	r.t.Helper()
	if err := r.plug.pull(); err != nil {
		r.t.Fatalf("disconnect disk: %v", err)
	}
	r.plug = nil
	r.target.Kill() // and its end
	r.l.Eventually(patience, "umount", func() error {
		out, err := r.l.TryFor(patience, "umount", r.storage.LUNs())
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// end stops the target before its disk.
func (r *rig) end() {
	if r.target != nil {
		r.target.Kill()
	}
	if out, err := r.l.TryFor(patience, "umount", r.storage.LUNs()); err != nil {
		r.t.Logf("umount: %v %s", err, out)
	}
	if r.plug != nil {
		r.disk.freeze()
		r.disk.drop(r.dice, 0)
		if err := r.plug.pull(); err != nil {
			r.t.Errorf("disconnect disk: %v", err)
		}
	}
	if _, _, _, err := r.disk.counts(); err != nil {
		r.t.Errorf("disk: %v", err)
	}
}

// again detaches the volume, whose error is latched, and attaches it: what staging it again does.
func (r *rig) again() {
	r.t.Helper()
	r.initiator.Detach(volume)
	r.attach()
}

// syncs opens the device and calls fsync on it n times.
func (r *rig) syncs(n int) (errs []error) {
	r.t.Helper()
	f, err := os.OpenFile(r.device, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for range n {
		errs = append(errs, syscall.Fsync(int(f.Fd())))
	}
	return errs
}

// latchedFor fails the test unless every flush fails.
func (r *rig) latchedFor(n int) {
	r.t.Helper()
	for i, err := range r.syncs(n) {
		if !errors.Is(err, syscall.EIO) {
			r.t.Fatalf("fsync %d after a lost cache: %v, want EIO", i+1, err)
		}
	}
}

// figure prints what was measured, where it is found again.
func figure(t *testing.T, format string, args ...any) {
	fmt.Printf("figure: %s: %s\n", strings.TrimPrefix(t.Name(), "Test"), fmt.Sprintf(format, args...))
}

// full picks the count for FULL=1, or the shorter one.
func full(all, short int) int {
	if os.Getenv("FULL") == "1" {
		return all
	}
	return short
}
