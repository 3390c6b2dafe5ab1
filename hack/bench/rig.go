package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// rig is two network namespaces with two cables between them, c0–s0 and c1–s1, and what runs in them.
type rig struct {
	ctx            context.Context
	binary         string
	dir            string // on a tmpfs
	client, server string
	target, vblade *process
	running        []*process
}

// newRig makes the namespaces; close removes them, also after an error.
func newRig(ctx context.Context, binary string) (*rig, error) {
	name := fmt.Sprintf("aoe-bench-%d", os.Getpid())
	r := &rig{ctx: ctx, binary: binary, client: name + "-c", server: name + "-s"}
	dir, err := os.MkdirTemp("/dev/shm", name)
	if err != nil {
		return r, err
	}
	r.dir = dir
	steps := [][]string{{"netns", "add", r.client}, {"netns", "add", r.server}}
	for _, n := range []string{"0", "1"} {
		steps = append(steps,
			[]string{"-n", r.client, "link", "add", "c" + n, "mtu", "9000", "type", "veth", "peer", "name", "s" + n, "mtu", "9000", "netns", r.server},
			[]string{"-n", r.client, "link", "set", "c" + n, "up"},
			[]string{"-n", r.server, "link", "set", "s" + n, "up"})
	}
	for _, args := range steps {
		if _, err := r.run("", "ip", args...); err != nil {
			return r, err
		}
	}
	return r, nil
}

// shape makes each path as fast as the other, in both directions.
func (r *rig) shape() error {
	for _, end := range [][2]string{{r.client, "c0"}, {r.client, "c1"}, {r.server, "s0"}, {r.server, "s1"}} {
		if _, err := r.run("", "tc", "-n", end[0], "qdisc", "add", "dev", end[1], "root", "tbf", "rate", shapedRate, "burst", "128k", "limit", "4m"); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) close() error {
	for _, p := range r.running {
		p.kill()
	}
	var errs []error
	for _, ns := range []string{r.client, r.server} {
		errs = append(errs, exec.Command("ip", "netns", "del", ns).Run())
	}
	if r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
	}
	return errors.Join(errs...)
}

// mac is the address of an end of a cable.
func (r *rig) mac(ifname string) string {
	ns := r.client
	if strings.HasPrefix(ifname, "s") {
		ns = r.server
	}
	text, err := r.run(ns, "cat", "/sys/class/net/"+ifname+"/address")
	if err != nil {
		return err.Error() // no address: whoever uses it says what is wrong
	}
	return strings.TrimSpace(text)
}

func (r *rig) command(ns, name string, args ...string) *exec.Cmd {
	if ns != "" {
		name, args = "ip", append([]string{"netns", "exec", ns, name}, args...)
	}
	return exec.CommandContext(r.ctx, name, args...)
}

// run runs a command in a namespace and returns what it printed.
func (r *rig) run(ns, name string, args ...string) (string, error) {
	var out, problems bytes.Buffer
	cmd := r.command(ns, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, problems.String())
	}
	return out.String(), nil
}

// process is a server that runs; it ends with the rig.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (r *rig) start(ns, name string, args ...string) (*process, error) {
	p := &process{cmd: r.command(ns, name, args...), done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	r.running = append(r.running, p)
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails when it has ended already
	<-p.done
}

// cpu is the time that the process has used: `ip netns exec` becomes the command it runs.
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var user, system int64
	if len(fields) < 13 {
		return 0
	}
	_, _ = fmt.Sscan(fields[11]+" "+fields[12], &user, &system) // numbers, by proc(5)
	return time.Duration(user+system) * time.Second / 100       // USER_HZ
}
