//go:build vm

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// eachFrontend runs a test, which waits most of its time, with every front end that was asked for side by side, each with a segment
// of its own.
func eachFrontend(t *testing.T, f func(t *testing.T, l *lab.Lab)) {
	for _, name := range lab.Frontends() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			l.Frontend = name
			f(t, l)
		})
	}
}

// figure prints what was measured, where it is found again.
func figure(t *testing.T, format string, args ...any) {
	fmt.Printf("figure: %s: %s\n", strings.TrimPrefix(t.Name(), "Test"), fmt.Sprintf(format, args...))
}

// scaled is how often or how much of something: full with FULL=1, else fewer, and it says so.
func scaled(t *testing.T, what string, full, short int) int {
	if os.Getenv("FULL") == "1" {
		return full
	}
	figure(t, "shortened to %d of %d %s; FULL=1 for all", short, full, what)
	return short
}

// managed makes a LUN that admits the host, and returns its generation.
func managed(t *testing.T, target *lab.Target, addr, size string, host *lab.Host) string {
	t.Helper()
	out := target.MustLun("create", addr, "--size", size)
	_, rest, ok := strings.Cut(out, addr+"-")
	if !ok || len(rest) < 16 {
		t.Fatalf("lun create says %q, not the handle", out)
	}
	target.MustLun("admit", addr, "--node", "a", "--mac", host.MAC)
	return rest[:16]
}

// mount makes an ext4 on the device and mounts it until the test ends.
func mount(t *testing.T, l *lab.Lab, device string) string {
	t.Helper()
	l.Run("mkfs.ext4", "-q", device)
	dir := filepath.Join(l.Dir(), "mnt")
	l.Run("mkdir", dir)
	l.Run("mount", device, dir)
	t.Cleanup(func() { _, _ = l.TryFor(time.Minute, "umount", dir) }) // the test has done it unless it failed
	return dir
}
