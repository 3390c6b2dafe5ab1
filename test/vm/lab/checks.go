//go:build vm

package lab

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Complaints returns a function that fails the test if the kernel has complained about I/O since.
func (l *Lab) Complaints() func() {
	l.t.Helper()
	before := strings.Count(l.Run("dmesg"), "\n")
	return func() {
		l.t.Helper()
		lines := strings.Split(l.Run("dmesg"), "\n")
		for _, line := range lines[min(before, len(lines)):] {
			for _, bad := range []string{"I/O error", "operation not supported error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Remounting filesystem read-only", "blocked for more than"} {
				if strings.Contains(line, bad) {
					l.t.Errorf("the kernel says: %s", line)
				}
			}
		}
	}
}

// NothingLeft fails the test if anything is left of an attachment: in the kernel (of the lab's front end, or of all), in the run directory, or in
// the initiator's eyes.
func (i *Initiator) NothingLeft() {
	i.l.t.Helper()
	patterns := []string{filepath.Join(i.Records(), "*")}
	if i.l.Frontend != "ublk" {
		patterns = append(patterns, "/sys/block/nbd*/pid")
	}
	if i.l.Frontend != "nbd" {
		patterns = append(patterns, "/sys/block/ublkb*", "/sys/class/ublk-char/*")
	}
	for _, pattern := range patterns {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			i.l.t.Errorf("left: %v, %v", found, err)
		}
	}
	if list, err := i.Attachments(time.Minute); err != nil || len(list) > 0 {
		i.l.t.Errorf("left attached: %v, %v", list, err)
	}
	entries, err := os.ReadDir(i.Dir)
	if err != nil {
		i.l.t.Error(err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeSocket != 0 && e.Name() != filepath.Base(i.Socket()) {
			i.l.t.Errorf("left: socket %s", e.Name())
		}
	}
	if out, err := i.CLI(time.Minute, "doctor", "--run-dir", i.Dir, "--state-dir", filepath.Join(i.Dir, "state")); err != nil {
		i.l.t.Errorf("doctor: %v\n%s", err, out)
	}
}
