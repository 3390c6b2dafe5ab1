//go:build vm

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// startPatience is how long a process may take to answer: an emulated CPU takes seconds for what takes a real one
// milliseconds.
const startPatience = time.Minute

// Target is an aoe-csi target on a host.
type Target struct {
	*Host
	Shelf int
	proc  *Process
}

// Target starts a shelf on the host, its LUNs under the host's directory, and waits until its API answers.
func (h *Host) Target(shelf int) *Target {
	h.l.t.Helper()
	t := &Target{Host: h, Shelf: shelf}
	t.StartAgain()
	return t
}

// StartAgain starts the target after Kill or Terminate, on the same directory.
func (t *Target) StartAgain() {
	t.l.t.Helper()
	t.proc = t.Start(Binary(), "target", "--shelf", fmt.Sprint(t.Shelf), "--interface", t.If,
		"--dir", filepath.Join(t.Dir, "luns"), "--run-dir", t.Dir)
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

// Initiator is an aoe-csi initiator on a host.
type Initiator struct {
	*Host
	proc *Process
}

// Initiator starts an initiator on the host and waits until its API answers.
func (h *Host) Initiator() *Initiator {
	h.l.t.Helper()
	i := &Initiator{Host: h}
	i.StartAgain()
	return i
}

// Socket is the initiator's API socket.
func (i *Initiator) Socket() string { return filepath.Join(i.Dir, "initiator.sock") }

// StartAgain starts the initiator after Kill, on the same run directory.
func (i *Initiator) StartAgain() {
	i.l.t.Helper()
	i.proc = i.Start(Binary(), "initiator", "--interface", i.If, "--socket", i.Socket(),
		"--run-dir", i.Dir, "--state-dir", filepath.Join(i.Dir, "state"))
	i.l.Eventually(startPatience, "initiator's API", func() error {
		if !i.proc.Running() {
			return fmt.Errorf("initiator ended: %s", tail(i.proc.out.String(), 2000))
		}
		out, err := i.CLI(startPatience/2, "stat")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// Kill sends SIGKILL to the initiator.
func (i *Initiator) Kill() { i.proc.Kill() }

// Terminate sends SIGTERM to the initiator and waits for its end.
func (i *Initiator) Terminate(d time.Duration) error { return i.proc.Terminate(d) }

// CLI runs `aoe-csi SUBCOMMAND --socket … ARG…`.
func (i *Initiator) CLI(d time.Duration, sub string, args ...string) (string, error) {
	return i.Try(d, append([]string{Binary(), sub, "--socket", i.Socket()}, args...)...)
}

// Attach attaches a target and returns the device's path.
func (i *Initiator) Attach(addr string, args ...string) string {
	i.l.t.Helper()
	out, err := i.CLI(60*time.Second, "attach", append([]string{addr, "-o", "json"}, args...)...)
	if err != nil {
		i.l.t.Fatalf("attach %s: %v\n%s", addr, err, out)
	}
	var a struct {
		Device string `json:"device"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &a); err != nil || a.Device == "" {
		i.l.t.Fatalf("attach %s: no device in %q: %v", addr, out, err)
	}
	return a.Device
}

// Detach detaches a target.
func (i *Initiator) Detach(addr string, args ...string) {
	i.l.t.Helper()
	if out, err := i.CLI(60*time.Second, "detach", append([]string{addr}, args...)...); err != nil {
		i.l.t.Fatalf("detach %s: %v\n%s", addr, err, out)
	}
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
