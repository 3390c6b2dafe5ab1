//go:build vm

package recovery

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestOldWrite: the network holds a write back while its initiator is killed and the next one writes something else there. Let go
// of, the old frame is refused and the new data stay.
func TestOldWrite(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		const lba, at = 0x12345, 0x12345 * aoe.SectorSize
		const hold = 3 * time.Second // at least
		target, host := l.Host("t").Target(7), l.Host("a")
		gen := managed(t, target, "e7.1", "64Mi", host)
		i := host.Initiator()
		device := i.Attach("e7.1", "--generation", gen)
		wire := host.Wire()

		target.DropWritesTo(lba)
		written := make(chan error, 1)
		go func() { written <- writeBlock(device, at, 'o') }()
		old := wire.Find(time.Minute, func(f aoe.Frame) bool {
			ata, err := f.ATA()
			return err == nil && !f.IsResponse() && ata.Flags()&aoe.ATAWrite != 0 && ata.LBA() == lba
		})
		if old == nil {
			t.Fatal("the write was not seen on the wire")
		}
		held := time.Now()
		i.Kill()
		target.DropNothing() // the frame is with us, and the kernel's repetition of the write is the next initiator's
		i.StartAgain()
		select {
		case err := <-written:
			if err != nil {
				t.Fatalf("the write whose initiator was killed: %v", err)
			}
		case <-time.After(2 * time.Minute):
			l.Diagnose()
			t.Fatal("the write whose initiator was killed does not come back")
		}
		if err := writeBlock(device, at, 'n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(held.Add(hold)))
		wire.Send(old)
		answer := wire.Find(time.Minute, func(f aoe.Frame) bool { return f.IsResponse() && f.Tag() == old.Tag() })
		if answer == nil || !answer.IsError() {
			t.Errorf("the target's answer to the old frame is % x, want a refusal", []byte(answer))
		}
		if lun := firstBlock(t, lunFile(t, target), at); lun != 'n' {
			t.Errorf("the LUN has %q where the new data were", lun)
		}
		if got := firstBlock(t, device, at); got != 'n' {
			t.Errorf("the device has %q where the new data were", got)
		}
		i.Detach("e7.1")
		figure(t, "a write held for %v was refused after its initiator had been killed; the new data stayed", time.Since(held).Round(time.Millisecond))
	})
}

// writeBlock fills a page of the device with a byte, past the page cache.
func writeBlock(device string, at int64, fill byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		return err
	}
	copy(block, bytes.Repeat([]byte{fill}, len(block)))
	if _, err := f.WriteAt(block, at); err != nil {
		return err
	}
	return f.Close()
}

// firstBlock reads the first byte at an offset of a file or device that has not been read before.
func firstBlock(t *testing.T, path string, at int64) byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// lunFile is the backing file of the target's only LUN.
func lunFile(t *testing.T, target *lab.Target) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(filepath.Join(target.Dir, "luns"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() >= 16<<20 {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("LUN files: %v, %v", found, err)
	}
	return found[0]
}
