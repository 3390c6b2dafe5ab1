package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// system reads what the kernel tells below root.
type system struct{ root string }

func (s system) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, path))
	return strings.TrimSpace(string(b)), err
}

func (s system) exists(path string) bool {
	_, err := os.Stat(filepath.Join(s.root, path))
	return err == nil
}

// frontends says what the host lacks for them, and how near their limits are. Nothing is loaded.
func (s system) frontends() []finding {
	var findings []finding
	const ublk, nbd = "front end ublk", "front end nbd"
	switch {
	case !s.exists("sys/module/ublk_drv"):
		findings = append(findings, note(ublk, "modprobe ublk_drv (Linux 6.12 from 6.12.114 on, or 6.15 or later), and list it in /etc/modules-load.d", "its module is not loaded"))
	case !s.exists("dev/ublk-control"):
		findings = append(findings, note(ublk, "show the host's /dev to the container", "there is no /dev/ublk-control"))
	}
	if value, err := s.read("proc/sys/kernel/io_uring_disabled"); err == nil && value != "0" {
		findings = append(findings, note(ublk, "sysctl kernel.io_uring_disabled=0, which ublk needs",
			"sysctl kernel.io_uring_disabled is %s: %s", value, map[bool]string{true: "nobody can use io_uring", false: "only privileged processes can use io_uring"}[value == "2"]))
	}
	if !s.exists("sys/module/nbd") {
		findings = append(findings, note(nbd, "modprobe nbd, and list it in /etc/modules-load.d", "its module is not loaded"))
	}
	if f := s.limit(ublk, "ublk_drv", "ublks_max", "ublkb"); f != nil {
		findings = append(findings, *f)
	}
	if unprivileged() {
		findings = append(findings, note("doctor", "run it as root", "without CAP_SYS_ADMIN it cannot see everything"))
	}
	return findings
}

// probe tries the front ends whose modules are loaded; trying another would load its module.
func (s system) probe(ctx context.Context, fronts []blockdev.Frontend) []finding {
	var findings []finding
	for _, f := range fronts {
		module := map[string]string{"ublk": "ublk_drv"}[f.Name()]
		if module == "" {
			module = f.Name()
		}
		if !s.exists("sys/module/" + module) {
			continue
		}
		if err := f.Probe(ctx); err != nil {
			findings = append(findings, note("front end "+f.Name(), "it is not needed if another one works", "not available: %v", err))
		}
	}
	return findings
}

// limit compares the devices that there are with the most that the driver makes. NBD has no such limit: beyond nbds_max it makes
// devices when they are asked for.
func (s system) limit(object, module, parameter, prefix string) *finding {
	text, err := s.read(filepath.Join("sys/module", module, "parameters", parameter))
	most, parseErr := strconv.Atoi(text)
	if err != nil || parseErr != nil || most <= 0 {
		return nil
	}
	devices, err := filepath.Glob(filepath.Join(s.root, "sys/block", prefix+"*"))
	if err != nil || len(devices)*4 < most*3 {
		return nil
	}
	add := note
	if len(devices) >= most {
		add = problem
	}
	f := add(object, fmt.Sprintf("echo %d > /sys/module/%s/parameters/%s, and the same in /etc/modprobe.d", 4*most, module, parameter),
		"%d of %d devices are in use", len(devices), most)
	return &f
}

func unprivileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0
}

// Flags of a process that serves block devices (PR_SET_IO_FLUSHER sets both; include/linux/sched.h).
const (
	flagNoIO     = 0x00080000 // PF_MEMALLOC_NOIO
	flagThrottle = 0x00100000 // PF_LOCAL_THROTTLE
)

// initiator looks at the process behind the socket.
func (s system) initiator(socket string) []finding {
	pid, err := peer(socket)
	if err != nil || pid == 0 {
		return []finding{note("initiator", "run the doctor in its pod, or on the host", "its process cannot be seen from here")}
	}
	return s.process(pid)
}

// process judges whether the initiator keeps running when the host is out of memory.
func (s system) process(pid int) []finding {
	var findings []finding
	object := fmt.Sprintf("initiator (process %d)", pid)
	dir := filepath.Join("proc", strconv.Itoa(pid))
	if flags, err := s.processFlags(dir); err == nil && flags&(flagNoIO|flagThrottle) != flagNoIO|flagThrottle {
		findings = append(findings, problem(object, "let it have CAP_SYS_RESOURCE (chart: privileged), and Linux 5.6 or later",
			"it is no I/O flusher: when memory is short the host can deadlock on a volume"))
	}
	if state, err := s.read(filepath.Join(dir, "status")); err == nil {
		for line := range strings.Lines(state) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmLck:" && fields[1] == "0" {
				findings = append(findings, problem(object, "let it have CAP_IPC_LOCK (chart: privileged)",
					"its memory is not locked: it may have to wait for its own pages to be read"))
			}
		}
	}
	if score, err := s.read(filepath.Join(dir, "oom_score_adj")); err == nil && score != "-1000" {
		findings = append(findings, problem(object, "let it have CAP_SYS_RESOURCE (chart: privileged)", "it can be killed when memory runs out (oom_score_adj is %s)", score))
	}
	return findings
}

// processFlags is field 9 of proc(5)'s stat, after the name, which may contain anything.
func (s system) processFlags(dir string) (uint64, error) {
	stat, err := s.read(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return 0, errors.New("stat is too short")
	}
	return strconv.ParseUint(fields[6], 10, 64)
}

// peer is the process that listens on a unix socket.
func peer(socket string) (int, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		credentials, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return 0, errors.Join(err, credErr)
	}
	return int(credentials.Pid), nil
}
