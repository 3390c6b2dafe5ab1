//go:build vm

package attach

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// connected says whether the kernel still has something behind an NBD device.
func connected(dev string) bool {
	_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(dev), "pid"))
	return err == nil
}

// doctor returns what it prints, and whether it found problems.
func doctor(i *lab.Initiator, args ...string) (string, error) {
	return i.CLI(time.Minute, "doctor", append([]string{"--run-dir", i.Dir, "--state-dir", filepath.Join(i.Dir, "state")}, args...)...)
}

// lineOf returns the doctor's line about an object.
func lineOf(out, object string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, object+" ") {
			return line
		}
	}
	return ""
}

// TestLeftovers: of the devices that nobody remembers, one that nobody uses is removed at the next start; one that is open, and
// one whose record is damaged, stay until it is safe.
func TestLeftovers(t *testing.T) {
	l := lab.New(t)
	l.Frontend = "nbd" // whose devices outlive their records
	target, i := l.Host("t").Target(7), l.Host("a").Initiator()
	var devs []string
	for slot := 1; slot <= 3; slot++ {
		addr := fmt.Sprintf("e7.%d", slot)
		target.MustLun("create", addr, "--size", "16Mi", "--access", "open")
		devs = append(devs, i.Attach(addr))
	}
	unused, open, damaged := devs[0], devs[1], devs[2]
	if out, err := doctor(i); err != nil {
		t.Errorf("while all is well: %v\n%s", err, out)
	}
	user, err := os.Open(open)
	if err != nil {
		t.Fatal(err)
	}
	i.Kill()
	record := func(slot int) string {
		return filepath.Join(i.Dir, "attachments", fmt.Sprintf("e7%%2E%d.record", slot))
	}
	for _, slot := range []int{1, 2} {
		if err := os.Remove(record(slot)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(record(3), 200); err != nil {
		t.Fatal(err)
	}
	saysOf := func(out, dev, words string) {
		t.Helper()
		if line := lineOf(out, "device "+dev); !strings.Contains(line, words) {
			t.Errorf("of %s it says %q, want %q; all of it:\n%s", dev, line, words, out)
		}
	}
	out, err := doctor(i)
	if err == nil {
		t.Error("without an initiator nothing is wrong")
	}
	saysOf(out, unused, "nobody uses it")
	saysOf(out, open, "has it open")
	saysOf(out, damaged, "cannot be trusted")

	i.StartAgain()
	l.Eventually(time.Minute, "removal of the unused device", func() error {
		if connected(unused) {
			return fmt.Errorf("%s is still there", unused)
		}
		return nil
	})
	mustFail(t, i, "damaged", "attach", "e7.3")
	if out, err = doctor(i, "--fix", "--yes"); err == nil {
		t.Error("two leftovers are not safe to remove, and nothing is wrong")
	}
	saysOf(out, open, "has it open")
	saysOf(out, damaged, "cannot be trusted")
	if !connected(open) || !connected(damaged) {
		t.Fatal("a device that is used, or whose record cannot be read, was removed")
	}

	if err := user.Close(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(record(3)); err != nil {
		t.Fatal(err)
	}
	if out, err = doctor(i, "--fix", "--yes"); err != nil {
		t.Errorf("after the reasons are gone: %v\n%s", err, out)
	}
	if connected(open) || connected(damaged) {
		t.Errorf("left after --fix:\n%s", out)
	}
	if out, err = doctor(i); err != nil {
		t.Errorf("after all of it: %v\n%s", err, out)
	}
}
