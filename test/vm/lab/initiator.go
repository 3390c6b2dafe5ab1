//go:build vm

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/attach"
)

// Initiator is an aoe-csi initiator on a host.
type Initiator struct {
	*Host
	frontend   string
	supervised bool
	through    []string // a command that starts it
	flags      []string
	proc       *Process
	earlier    string // what processes before this one printed
}

// Initiator starts an initiator on the host and waits until its API answers.
func (h *Host) Initiator() *Initiator {
	h.l.t.Helper()
	i := &Initiator{Host: h, frontend: h.l.Frontend}
	i.StartAgain()
	return i
}

// Supervised is Initiator under `aoe-csi supervise`, which starts it again at once when it dies.
func (h *Host) Supervised() *Initiator {
	h.l.t.Helper()
	i := &Initiator{Host: h, frontend: h.l.Frontend, supervised: true}
	i.StartAgain()
	return i
}

// InitiatorThrough is Initiator, started by another command, its only child, and with more flags.
func (h *Host) InitiatorThrough(command []string, flags ...string) *Initiator {
	h.l.t.Helper()
	i := &Initiator{Host: h, frontend: h.l.Frontend, supervised: true, through: command, flags: flags}
	i.StartAgain()
	return i
}

// Socket is the initiator's API socket.
func (i *Initiator) Socket() string { return filepath.Join(i.Dir, "initiator.sock") }

// Records is the directory of the attachments' records.
func (i *Initiator) Records() string { return filepath.Join(i.Dir, "attachments") }

// StartAgain starts the initiator after Kill, on the same run directory, and waits until its API answers.
func (i *Initiator) StartAgain() {
	i.l.t.Helper()
	argv := slices.Clone(i.through)
	if i.supervised && argv == nil {
		argv = []string{Binary(), "supervise", "--"}
	}
	argv = append(argv, Binary(), "initiator", "--interface", i.If, "--socket", i.Socket(), "--frontend", i.frontend,
		"--run-dir", i.Dir, "--state-dir", filepath.Join(i.Dir, "state"))
	argv = append(argv, i.flags...)
	if i.proc != nil {
		i.earlier += i.proc.Output()
	}
	i.proc = i.Start(argv...)
	i.l.Eventually(startPatience, "initiator's API", func() error {
		if !i.proc.Running() {
			return fmt.Errorf("initiator ended: %s", tail(i.proc.out.String(), 2000))
		}
		_, err := i.Attachments(startPatience / 2)
		return err
	})
}

// Kill sends SIGKILL to the initiator; a supervisor is killed, too, and takes its child with it.
func (i *Initiator) Kill() { i.proc.Kill() }

// Terminate sends SIGTERM to the initiator, or its supervisor, and waits for its end.
func (i *Initiator) Terminate(d time.Duration) error { return i.proc.Terminate(d) }

// Wait waits for the initiator's own end, or its supervisor's.
func (i *Initiator) Wait(d time.Duration) (string, error) { return i.proc.Wait(d) }

// Log is what the initiator, with all that ran before it, has printed.
func (i *Initiator) Log() string { return i.earlier + i.proc.Output() }

// PID is the initiator's process; 0 while a supervisor has not started it again.
func (i *Initiator) PID() int {
	pid := i.proc.cmd.Process.Pid
	if !i.supervised {
		return pid
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0
	}
	for _, list := range lists {
		children, _ := os.ReadFile(list) // a thread may end meanwhile
		if child, err := strconv.Atoi(strings.TrimSpace(string(children))); err == nil {
			return child
		}
	}
	return 0
}

// Signal waits until a supervised initiator runs, and sends it a signal. It returns when that was.
func (i *Initiator) Signal(s syscall.Signal) time.Time {
	i.l.t.Helper()
	var when time.Time
	i.l.Eventually(startPatience, "a process to send "+s.String(), func() error {
		pid := i.PID()
		if pid == 0 {
			return fmt.Errorf("not started yet")
		}
		when = time.Now()
		return syscall.Kill(pid, s)
	})
	return when
}

// CLI runs `aoe-csi SUBCOMMAND --socket … ARG…`.
func (i *Initiator) CLI(d time.Duration, sub string, args ...string) (string, error) {
	return i.Try(d, append([]string{Binary(), sub, "--socket", i.Socket()}, args...)...)
}

// Call calls the initiator's API, over a connection of its own: one to an earlier process would be tried again ever more
// slowly. It takes a fraction of the time that the command line does.
func (i *Initiator) Call(d time.Duration, f func(context.Context, initiatorv1.InitiatorClient) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	client, err := attach.Dial(i.Socket())
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // nothing is lost with it
	return f(ctx, client)
}

// Attachments is what the initiator has.
func (i *Initiator) Attachments(d time.Duration) ([]*initiatorv1.Attachment, error) {
	var list []*initiatorv1.Attachment
	err := i.Call(d, func(ctx context.Context, c initiatorv1.InitiatorClient) error {
		r, err := c.List(ctx, &initiatorv1.ListRequest{})
		list = r.GetAttachments()
		return err
	})
	return list, err
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
