//go:build vm

package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Lab is one Ethernet segment with hosts on it.
type Lab struct {
	// Frontend is what initiators started from now on offer: "auto", or one by name. New sets it to FRONTEND's.
	Frontend string

	t    *testing.T
	dir  string // scratch, on the guest's tmpfs
	name string // prefix of namespaces and interfaces
	n    int
}

// labs counts those of this process, which may run side by side.
var labs atomic.Int32

// New makes an empty segment (a bridge with MTU 9000 in a namespace of its own) that goes away with the test.
func New(t *testing.T) *Lab {
	t.Helper()
	l := &Lab{Frontend: Frontend(), t: t, dir: t.TempDir(), name: fmt.Sprintf("l%d-%d", os.Getpid()%10000, labs.Add(1))}
	l.Run("ip", "netns", "add", l.name)
	t.Cleanup(func() { l.try("ip", "netns", "del", l.name) })
	l.Run("ip", "-n", l.name, "link", "add", "br0", "mtu", "9000", "type", "bridge", "forward_delay", "0")
	l.Run("ip", "-n", l.name, "link", "set", "br0", "up")
	return l
}

// Binary is the aoe-csi under test.
func Binary() string {
	if b := os.Getenv("AOE_CSI_BIN"); b != "" {
		return b
	}
	return "aoe-csi"
}

// Frontend is the front end that the environment asks for with FRONTEND, "auto" when it asks for none.
func Frontend() string {
	if f := os.Getenv("FRONTEND"); f != "" {
		return f
	}
	return "auto"
}

// Frontends are those that a suite which compares them runs with: the one that the environment asks for, or all.
func Frontends() []string {
	if f := Frontend(); f != "auto" {
		return []string{f}
	}
	return []string{"ublk", "nbd"}
}

// Dir is a scratch directory of the lab.
func (l *Lab) Dir() string { return l.dir }

// Run runs a command to its end and returns what it printed; a failure ends the test.
func (l *Lab) Run(name string, args ...string) string {
	l.t.Helper()
	out, err := l.TryFor(2*time.Minute, name, args...)
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// TryFor runs a command for at most d and returns what it printed, both streams. A command that waits in the kernel for a device that
// nobody serves does not end even when it is killed: it is left behind, so that the test can say so.
func (l *Lab) TryFor(d time.Duration, name string, args ...string) (string, error) {
	out := &output{}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	done := make(chan struct{})
	var failure error // before done
	go func() {
		failure = cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
		return out.String(), failure
	case <-time.After(d):
	}
	_ = cmd.Process.Kill() // fails only when it has just ended
	select {
	case <-done:
		return out.String(), fmt.Errorf("not done after %v", d)
	case <-time.After(10 * time.Second):
		return out.String(), fmt.Errorf("not done after %v, and SIGKILL does not end it", d)
	}
}

func (l *Lab) try(name string, args ...string) {
	if out, err := l.TryFor(30*time.Second, name, args...); err != nil {
		l.t.Logf("clean-up: %s %s: %v %s", name, strings.Join(args, " "), err, out)
	}
}

// Host is one machine on the segment: a network namespace with the interface If.
type Host struct {
	l    *Lab
	NS   string // empty: the guest's own
	If   string
	MAC  string
	Dir  string // its /run/aoe-csi, state and LUNs
	port string // the bridge's end of its cable
}

// Host adds a host.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	h := &Host{NS: l.name + name, If: "eth1"}
	l.Run("ip", "netns", "add", h.NS)
	l.t.Cleanup(func() { l.try("ip", "netns", "del", h.NS) })
	l.cable(h, name, "netns", h.NS)
	h.Run("ip", "link", "set", "lo", "up")
	return h
}

// Guest adds the VM itself as a host, with the interface aoe0: the kernel's own initiator works in no other namespace.
func (l *Lab) Guest() *Host {
	l.t.Helper()
	h := &Host{If: "aoe0"}
	l.cable(h, "guest", "netns", "1")
	l.t.Cleanup(func() { l.try("ip", "link", "del", h.If) })
	return h
}

// cable connects a host to the bridge with a veth pair.
func (l *Lab) cable(h *Host, name string, where ...string) {
	l.t.Helper()
	l.n++
	h.l, h.port = l, fmt.Sprintf("p%d", l.n)
	h.MAC = fmt.Sprintf("52:54:00:aa:00:%02x", l.n)
	h.Dir = filepath.Join(l.dir, name)
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.Run("ip", append([]string{"-n", l.name, "link", "add", h.port, "mtu", "9000", "type", "veth",
		"peer", "name", h.If, "mtu", "9000", "address", h.MAC}, where...)...)
	l.Run("ip", "-n", l.name, "link", "set", h.port, "master", "br0", "up")
	h.Run("ip", "link", "set", h.If, "up")
}

// Netem sets the impairment of frames in both directions of the host's cable; none clears it.
func (h *Host) Netem(spec ...string) {
	h.l.t.Helper()
	if len(spec) == 0 {
		h.l.try("tc", "-n", h.l.name, "qdisc", "del", "dev", h.port, "root")
		h.Run("tc", "qdisc", "del", "dev", h.If, "root")
		return
	}
	h.l.Run("tc", append([]string{"-n", h.l.name, "qdisc", "replace", "dev", h.port, "root", "netem"}, spec...)...)
	h.Run(append([]string{"tc", "qdisc", "replace", "dev", h.If, "root", "netem"}, spec...)...)
}

// Unplug takes the host's cable out.
func (h *Host) Unplug() { h.l.Run("ip", "-n", h.l.name, "link", "set", h.port, "down") }

// Plug puts the cable back.
func (h *Host) Plug() { h.l.Run("ip", "-n", h.l.name, "link", "set", h.port, "up") }

// Cable makes two hosts that a veth pair with MTU 9000 connects, without a bridge: the VM itself, with the interface aoe0, and another.
func Cable(t *testing.T) (guest, far *Host) {
	t.Helper()
	l := &Lab{Frontend: Frontend(), t: t, dir: t.TempDir(), name: fmt.Sprintf("l%d", os.Getpid()%10000)}
	guest = &Host{l: l, If: "aoe0", MAC: "52:54:00:aa:01:01", Dir: filepath.Join(l.dir, "guest")}
	far = &Host{l: l, NS: l.name + "far", If: "eth1", MAC: "52:54:00:aa:01:02", Dir: filepath.Join(l.dir, "far")}
	for _, h := range []*Host{guest, far} {
		if err := os.MkdirAll(h.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.Run("ip", "netns", "add", far.NS)
	t.Cleanup(func() { l.try("ip", "netns", "del", far.NS) })
	l.Run("ip", "link", "add", guest.If, "mtu", "9000", "address", guest.MAC, "type", "veth",
		"peer", "name", far.If, "mtu", "9000", "address", far.MAC, "netns", far.NS)
	for _, h := range []*Host{guest, far} {
		h.Run("ip", "link", "set", h.If, "up")
		h.Run("ip", "link", "set", "lo", "up")
	}
	return guest, far
}

// Lab is where the host is.
func (h *Host) Lab() *Lab { return h.l }

// Run runs a command on the host and returns what it printed; a failure ends the test.
func (h *Host) Run(args ...string) string {
	h.l.t.Helper()
	argv := h.argv(args)
	return h.l.Run(argv[0], argv[1:]...)
}

func (h *Host) argv(args []string) []string {
	if h.NS == "" {
		return args
	}
	return append([]string{"ip", "netns", "exec", h.NS}, args...)
}

// Try runs a command on the host for at most d.
func (h *Host) Try(d time.Duration, args ...string) (string, error) {
	argv := h.argv(args)
	return h.l.TryFor(d, argv[0], argv[1:]...)
}

// killPatience is how long a killed process may take to end.
const killPatience = time.Minute

// Process is a running program; its output is logged when the test fails.
type Process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
	err  error
}

// Start starts a program on the host; it is killed when the test ends.
func (h *Host) Start(args ...string) *Process {
	h.l.t.Helper()
	p := &Process{t: h.l.t, out: &output{}, done: make(chan struct{})}
	argv := h.argv(args)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		h.l.t.Fatalf("start %v: %v", args, err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	h.l.t.Cleanup(func() {
		p.Kill()
		if h.l.t.Failed() {
			h.l.t.Logf("output of %v:\n%s", args, tail(p.out.String(), 8000))
		}
	})
	return p
}

// Kill sends SIGKILL and waits for the end. A process that waits for a device that nobody serves does not end: that fails the test.
func (p *Process) Kill() {
	p.t.Helper()
	_ = p.cmd.Process.Kill() // fails only when it has ended already
	select {
	case <-p.done:
	case <-time.After(killPatience):
		p.t.Errorf("%v has not ended %v after SIGKILL", p.cmd.Args, killPatience)
	}
}

// Terminate sends SIGTERM and waits up to d for the end.
func (p *Process) Terminate(d time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(d):
		return fmt.Errorf("still running %v after SIGTERM", d)
	}
}

// Wait waits up to d for the end and returns the exit error and what was printed.
func (p *Process) Wait(d time.Duration) (string, error) {
	select {
	case <-p.done:
		return p.out.String(), p.err
	case <-time.After(d):
		p.Kill()
		return p.out.String(), fmt.Errorf("not done after %v", d)
	}
}

// PID is the process that was started.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is what the process has printed so far, both streams.
func (p *Process) Output() string { return p.out.String() }

// Running says whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Eventually polls until check returns nil, and ends the test with its last error after d.
func (l *Lab) Eventually(d time.Duration, what string, check func() error) {
	l.t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.Diagnose()
			l.t.Fatalf("%s: not within %v: %v", what, d, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Diagnose logs what tells why something stands still: which tasks wait in the kernel, and for how many requests.
func (l *Lab) Diagnose() {
	l.t.Helper()
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0); err != nil {
		l.t.Logf("sysrq: %v", err)
	}
	for _, script := range []string{"dmesg | tail -n 150", "grep -H . /sys/block/*/inflight | grep -v '0 *0$'", "ps -eo pid,stat,wchan:30,args | grep -v '\\['"} {
		out, err := l.TryFor(30*time.Second, "sh", "-c", script)
		l.t.Logf("%s: %v\n%s", script, err, out)
	}
}

// output collects what a process prints; it can be read while the process runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
