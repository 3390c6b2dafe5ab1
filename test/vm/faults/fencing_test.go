//go:build vm

package faults

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestFencing: of two initiators only the admitted one gets and changes data; one that was expelled in the middle of its
// writes changes nothing any more, while the next one works.
func TestFencing(t *testing.T) {
	l := lab.New(t)
	target, a, b := l.Host("t").Target(7), l.Host("a").Initiator(), l.Host("b").Initiator()
	gen := createManaged(t, target, "e7.3", "64Mi")
	target.MustLun("admit", "e7.3", "--node", "a", "--mac", a.MAC)
	dev := a.Attach("e7.3", "--generation", gen)
	writeAll(t, dev, 0xaa)
	file := lunFile(t, target, 64<<20)
	checkAll(t, file, 0xaa)

	t.Run("not admitted", func(t *testing.T) { outsider(t, b, file, gen) })

	load := a.Start("fio", "--name=expelled", "--filename="+dev, "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--bs=4k",
		"--iodepth=32", "--size=64m", "--time_based", "--runtime=600")
	time.Sleep(2 * time.Second)
	if !load.Running() {
		out, err := load.Wait(time.Second)
		t.Fatalf("load of the admitted node ended: %v\n%s", err, out)
	}
	target.MustLun("expel", "e7.3", "--node", "a")
	before := sum(t, file)
	target.MustLun("admit", "e7.3", "--node", "b", "--mac", b.MAC)
	devB := b.Attach("e7.3", "--generation", gen)
	if after := sum(t, file); after != before {
		t.Fatal("the LUN changed after its node was expelled")
	}
	writeAll(t, devB, 0xbb)
	time.Sleep(7 * time.Second) // beyond the longest retransmission timeout of the expelled node
	checkAll(t, file, 0xbb)
	b.Detach("e7.3")
	a.Detach("e7.3", "--force")
	checkAll(t, file, 0xbb)
}

// TestReadmitted: a node is cut off in the middle of a write, taken off, and let in again after another one has used the volume. What it had left changes nothing;
// it can use the volume again when it has attached it anew.
func TestReadmitted(t *testing.T) {
	t.Run("alive", func(t *testing.T) { readmitted(t, false) })
	t.Run("killed", func(t *testing.T) { readmitted(t, true) })
}

// readmitted has the node's initiator killed meanwhile, or not.
func readmitted(t *testing.T, killed bool) {
	l := lab.New(t)
	target, a, b := l.Host("t").Target(7), l.Host("a").Initiator(), l.Host("b").Initiator()
	gen := createManaged(t, target, "e7.4", "64Mi")
	target.MustLun("admit", "e7.4", "--node", "a", "--mac", a.MAC)
	dev := a.Attach("e7.4", "--generation", gen)
	writeAll(t, dev, 0xaa)
	file := lunFile(t, target, 64<<20)

	a.Unplug()
	left := a.Start("fio", "--name=left", "--filename="+dev, "--ioengine=libaio", "--direct=1", "--rw=write", "--bs=4k", "--iodepth=16", "--size=1m")
	l.Eventually(time.Minute, "writes that wait", func() error {
		list, err := a.Attachments(10 * time.Second)
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].GetStatistics().GetOutstanding() == 0 {
			return fmt.Errorf("attachments: %v", list)
		}
		return nil
	})
	if killed {
		a.Kill()
	}
	target.MustLun("expel", "e7.4", "--node", "a")
	target.MustLun("admit", "e7.4", "--node", "b", "--mac", b.MAC)
	writeAll(t, b.Attach("e7.4", "--generation", gen), 0xbb)
	b.Detach("e7.4")
	target.MustLun("expel", "e7.4", "--node", "b")
	target.MustLun("admit", "e7.4", "--node", "a", "--mac", a.MAC)
	a.Plug()
	if killed {
		a.StartAgain() // it takes the device over only to fail what is left
	}
	if out, err := left.Wait(2 * time.Minute); err == nil {
		t.Errorf("what was left was written:\n%s", out)
	}
	checkAll(t, file, 0xbb)
	if !killed { // then the device is there, and may be mounted
		if out, err := a.CLI(time.Minute, "attach", "e7.4", "--generation", gen); err == nil || !strings.Contains(out, "admitted anew") {
			t.Errorf("attached as before: %v\n%s", err, out)
		}
	}
	a.Detach("e7.4")
	checkAll(t, file, 0xbb)
	writeAll(t, a.Attach("e7.4", "--generation", gen), 0xcc)
	a.Detach("e7.4")
	checkAll(t, file, 0xcc)
}

// outsider tries all that a node can that nobody admitted.
func outsider(t *testing.T, b *lab.Initiator, file, gen string) {
	out, err := b.CLI(60*time.Second, "attach", "e7.3", "--generation", gen, "--timeout", "3s")
	if err == nil {
		t.Fatalf("attach of a node that is not admitted succeeded: %s", out)
	}
	t.Logf("attach says: %s", out)
	if out, _ := b.CLI(20*time.Second, "discover"); strings.Contains(out, "e7.3") {
		t.Errorf("the LUN shows itself to a node that is not admitted:\n%s", out)
	}
	raw := b.Raw()
	addr := aoe.Addr{Shelf: 7, Slot: 3}
	read := aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAReadExt, Sectors: 1}
	if f := raw.ATA(addr, aoe.MAC{}, read, nil, time.Second); f != nil {
		t.Errorf("a read was answered: % x", []byte(f)[:min(len(f), 80)])
	}
	admitted, err := aoe.ParseMAC("52:54:00:aa:00:02") // a's, forged
	if err != nil {
		t.Fatal(err)
	}
	write := aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATAWriteExt, Sectors: 1}
	for _, src := range []aoe.MAC{{}, admitted} {
		raw.ATA(addr, src, write, bytes.Repeat([]byte{0xee}, aoe.SectorSize), time.Second)
	}
	checkAll(t, file, 0xaa)
}

// writeAll fills the device with a byte and makes it durable.
func writeAll(t *testing.T, dev string, fill byte) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte{fill}, 1<<20)
	for off := int64(0); off < 64<<20; off += int64(len(block)) {
		if _, err := f.WriteAt(block, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// checkAll fails the test unless the LUN's file has nothing but the byte.
func checkAll(t *testing.T, file string, fill byte) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range data {
		if b != fill {
			t.Fatalf("byte %d of the LUN is %#x, not %#x", i, b, fill)
		}
	}
}

func sum(t *testing.T, file string) [32]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}
