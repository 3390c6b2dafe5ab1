//go:build vm

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestFallback: a kernel without ublk takes NBD and says why; one with neither says what to load. Whatever FRONTEND says, both are tried.
func TestFallback(t *testing.T) {
	l := lab.New(t)
	l.Frontend = "auto"
	target := l.Host("t").Target(7)
	target.MustLun("create", "e7.1", "--size", "16Mi", "--access", "open")
	t.Cleanup(func() { // when the modules are there again
		l.Run("modprobe", "ublk_drv")
		l.Run("modprobe", "nbd", "nbds_max=16", "max_part=0")
	})
	hideModules(t, l)
	l.Run("rmmod", "ublk_drv")
	i := l.Host("a").Initiator()
	device := i.Attach("e7.1")
	if !strings.HasPrefix(device, "/dev/nbd") {
		t.Errorf("without ublk the device is %s", device)
	}
	if err := writeBlock(device, 0, 'x'); err != nil {
		t.Error(err)
	}
	list, err := i.Attachments(time.Minute)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].GetFrontendReason(), "ublk") {
		t.Fatalf("why not ublk is not said: %v, %v", list, err)
	}
	i.Detach("e7.1")
	i.NothingLeft()

	l.Run("rmmod", "nbd")
	out, err := i.CLI(time.Minute, "attach", "e7.1")
	if err == nil {
		t.Fatalf("attached without ublk and nbd: %s", out)
	}
	for _, word := range []string{"ublk_drv", "nbd", "modprobe"} {
		if !strings.Contains(out, word) {
			t.Errorf("the error does not name %q: %s", word, out)
		}
	}
	figure(t, "without ublk: %s, %q; with neither: %s", device, list[0].GetFrontendReason(), strings.TrimSpace(out))
}

// hideModules empties the directory of the kernel's modules until the test ends, for processes that are started from now on.
func hideModules(t *testing.T, l *lab.Lab) {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join("/lib/modules", strings.TrimSpace(string(release)))
	empty := filepath.Join(l.Dir(), "no-modules")
	l.Run("mkdir", empty)
	l.Run("mount", "--bind", empty, modules)
	t.Cleanup(func() { l.Run("umount", modules) })
}
