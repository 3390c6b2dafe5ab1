//go:build vm

// Package shutdown has the machine go down under the initiator, by a real systemd.
package shutdown

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// systemdScript is a machine's first process in namespaces of its own: a real systemd, with one service that takes its time to stop,
// so that the machine stays on its way down.
const systemdScript = `
mount --make-rprivate /
mount -t tmpfs run /run && mkdir -p /run/lock /run/systemd/system
mount -t proc proc /proc
mount -t cgroup2 none /sys/fs/cgroup
printf '[Unit]\nDefaultDependencies=no\nWants=slow.service\n' >/run/systemd/system/lab.target
printf '[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n[Service]\nExecStart=/bin/sleep 3600\nExecStop=/bin/sleep 600\nTimeoutStopSec=600\n' >/run/systemd/system/slow.service
export container=lab
exec /lib/systemd/systemd --system --unit=lab.target --log-target=console --log-level=warning --show-status=no
`

// children are the processes that one has started.
func children(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	var all []int
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread may end meanwhile
		for _, word := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// child waits for the first process that one starts.
func child(l *lab.Lab, p *lab.Process) int {
	var found []int
	l.Eventually(30*time.Second, "child process", func() error {
		if found = children(p.PID()); len(found) == 0 {
			return fmt.Errorf("%d has none; it says %s", p.PID(), p.Output())
		}
		return nil
	})
	return found[0]
}

// TestShutdown: the machine goes down while a file system is mounted and dirty. The initiator ends in time, sync and umount come
// back, and the data are on the target.
func TestShutdown(t *testing.T) {
	frontends := lab.Frontends()
	if os.Getenv("FULL") != "1" {
		t.Logf("shortened to %s of %v; FULL=1 for all", frontends[0], frontends)
		frontends = frontends[:1]
	}
	for _, name := range frontends {
		t.Run(name, func(t *testing.T) { goDown(t, name) })
	}
}

func goDown(t *testing.T, frontend string) {
	l := lab.New(t)
	l.Frontend = frontend
	a := l.Host("a")
	l.Host("t").Target(7).MustLun("create", "e7.1", "--size", "256Mi", "--access", "open")
	machine := a.Start("unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup", "bash", "-c", systemdScript)
	systemd := strconv.Itoa(child(l, machine))
	inside := func(args ...string) []string { return append([]string{"nsenter", "-t", systemd, "-p", "-m"}, args...) }
	l.Eventually(time.Minute, "systemd", func() error {
		out, err := a.Try(20*time.Second, inside("systemctl", "is-system-running")...)
		if !strings.Contains(out, "running") && !strings.Contains(out, "degraded") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	// systemd answers nobody whose process it cannot see.
	i := a.InitiatorThrough([]string{"nsenter", "-t", systemd, "-p"}, "--host-root", "/proc/"+systemd+"/root")
	dev := i.Attach("e7.1")
	dir := filepath.Join(l.Dir(), "mnt")
	l.Run("mkfs.ext4", "-q", dev)
	l.Run("mkdir", dir)
	l.Run("mount", dev, dir)
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data) // never fails
	if err := os.WriteFile(filepath.Join(dir, "dirty"), data, 0o600); err != nil {
		t.Fatal(err)
	}

	a.Run(inside("systemctl", "--no-block", "poweroff")...)
	l.Eventually(time.Minute, "the machine to go down", func() error {
		if out, _ := a.Try(20*time.Second, inside("systemctl", "is-system-running")...); !strings.Contains(out, "stopping") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	begin := time.Now()
	i.Signal(syscall.SIGTERM)
	if out, err := i.Wait(40 * time.Second); err != nil {
		t.Fatalf("initiator: %v\n%s", err, out)
	}
	t.Logf("the initiator ended %v after SIGTERM", time.Since(begin).Round(time.Millisecond))
	for _, command := range [][]string{{"sync"}, {"umount", dir}} {
		began := time.Now()
		if out, err := l.TryFor(30*time.Second, command[0], command[1:]...); err != nil {
			t.Errorf("%v: %v\n%s", command, err, out)
		}
		t.Logf("%s took %v", command[0], time.Since(began).Round(time.Millisecond))
	}
	if _, err := os.Stat(dev); err == nil && strings.Contains(dev, "ublk") {
		t.Errorf("%s is still there", dev)
	}
	if left, err := os.ReadDir(i.Records()); err != nil || len(left) != 0 {
		t.Errorf("records left: %v, %v", left, err)
	}
	machine.Kill()

	again := a.Initiator()
	l.Run("mount", again.Attach("e7.1"), dir)
	got, err := os.ReadFile(filepath.Join(dir, "dirty"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("what was dirty is not there: %d bytes, %v", len(got), err)
	}
	l.Run("umount", dir)
	again.Detach("e7.1")
}
