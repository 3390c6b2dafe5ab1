//go:build vm

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// startPatience is how long a process may take to answer: an emulated CPU takes seconds for what takes a real one
// milliseconds.
const startPatience = time.Minute

// Target is an aoe-csi target on a host.
type Target struct {
	*Host
	Shelf   int
	binary  string
	through []string // a command that starts it
	proc    *Process
}

// Target starts a shelf on the host, its LUNs under the host's directory, and waits until its API answers.
func (h *Host) Target(shelf int) *Target {
	h.l.t.Helper()
	return h.TargetThrough(shelf, Binary())
}

// TargetThrough is Target with another binary, started by another command, which becomes it.
func (h *Host) TargetThrough(shelf int, binary string, command ...string) *Target {
	h.l.t.Helper()
	t := &Target{Host: h, Shelf: shelf, binary: binary, through: command}
	t.StartAgain()
	return t
}

// StartAgain starts the target after Kill or Terminate, on the same directory.
func (t *Target) StartAgain() {
	t.l.t.Helper()
	t.proc = t.Start(append(slices.Clone(t.through), t.binary, "target", "--shelf", fmt.Sprint(t.Shelf), "--interface", t.If,
		"--dir", t.LUNs(), "--run-dir", t.Dir)...)
	t.l.Eventually(startPatience, "target's API", func() error {
		if !t.proc.Running() {
			return fmt.Errorf("target ended: %s", tail(t.proc.out.String(), 2000))
		}
		out, err := t.Lun(startPatience/2, "list")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// Kill sends SIGKILL to the target.
func (t *Target) Kill() { t.proc.Kill() }

// Terminate sends SIGTERM to the target and waits for its end.
func (t *Target) Terminate(d time.Duration) error { return t.proc.Terminate(d) }

// PID is the target's process.
func (t *Target) PID() int { return t.proc.PID() }

// Log is what the process that was started last has printed.
func (t *Target) Log() string { return t.proc.Output() }

// LUNs is the target's directory.
func (h *Host) LUNs() string { return filepath.Join(h.Dir, "luns") }

// API is the shelf API's unix socket.
func (t *Target) API() string { return filepath.Join(t.Dir, fmt.Sprintf("shelf-%d-api.sock", t.Shelf)) }

// Lun runs `aoe-csi lun ARG…` against the shelf.
func (t *Target) Lun(d time.Duration, args ...string) (string, error) {
	return t.Try(d, append([]string{Binary(), "lun", "--socket", t.API()}, args...)...)
}

// MustLun is Lun for calls that must succeed.
func (t *Target) MustLun(args ...string) string {
	t.l.t.Helper()
	out, err := t.Lun(startPatience, args...)
	if err != nil {
		t.l.t.Fatalf("lun %v: %v\n%s", args, err, out)
	}
	return out
}

// Vblade starts vblade on a sparse file of the size in bytes.
func (h *Host) Vblade(shelf, slot int, size int64) *Process {
	h.l.t.Helper()
	file := filepath.Join(h.Dir, fmt.Sprintf("vblade-%d.%d", shelf, slot))
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(size)
		_ = f.Close()
	}
	if err != nil {
		h.l.t.Fatal(err)
	}
	return h.Start("vblade", "-b", "16", fmt.Sprint(shelf), fmt.Sprint(slot), h.If, file)
}

// FioVerify is a fio command line that writes and reads back with checksums for d on a device or file.
func FioVerify(name, path string, d time.Duration, extra ...string) []string {
	return append([]string{
		"fio", "--name=" + name, "--filename=" + path, "--ioengine=libaio", "--direct=1", "--rw=randwrite",
		"--bsrange=512-128k", "--blockalign=4k", "--iodepth=16", "--size=64m", "--time_based",
		fmt.Sprintf("--runtime=%d", int(d.Seconds())), "--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1",
		"--end_fsync=1", "--fsync=64", "--group_reporting", "--output-format=normal",
	}, extra...)
}
