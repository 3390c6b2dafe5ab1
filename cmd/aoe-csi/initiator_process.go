package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// The main goroutine stays on the main thread: what is set for it (to be killed with a supervisor) is what execve keeps.
func init() { runtime.LockOSThread() }

// isFlusher says whether becomeFlusher has done its work.
func isFlusher() bool {
	on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && on == 1
}

// becomeFlusher tells the kernel that this process serves block devices: its memory allocations then never wait for
// writes to a block device, perhaps one of its own (prctl(2), PR_SET_IO_FLUSHER, Linux 5.6). The flag is a thread's and
// kept over execve, so the process is started anew with it: every thread of a Go program comes from its first.
// To be called from the main goroutine.
func becomeFlusher() {
	if isFlusher() {
		return
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		klog.InfoS("Not an I/O flusher: when memory is short the host can deadlock on a volume (needs CAP_SYS_RESOURCE and Linux 5.6)", "err", err)
		return
	}
	path, err := os.Executable() // the link itself would give the process the name "exe"
	if err == nil {
		pprof.StopCPUProfile() // its timer would outlive this program, and end the next, which begins a profile of its own
		err = unix.Exec(path, os.Args, os.Environ())
	}
	klog.ErrorS(err, "Could not start anew as an I/O flusher")
}

// prepareMemory keeps what is used once in memory, and the process alive when others run out of it.
func prepareMemory(shards int) {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		klog.InfoS("Memory is not locked: the initiator may wait for its own pages to be read (needs CAP_IPC_LOCK)", "err", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		klog.InfoS("The initiator can be killed when memory runs out (needs CAP_SYS_RESOURCE)", "err", err)
	}
	// A thread per shard, one for everything else; more would only keep more memory.
	runtime.GOMAXPROCS(max(2, shards+1))
	realtimeWhenShort()
}

// initiatorInterfaces checks named interfaces, or finds the network cards that are up.
func initiatorInterfaces(names []string) ([]string, error) {
	for _, name := range names {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil, fmt.Errorf("--interface %s: %w; this host has %v", name, err, interfaceNames())
		}
	}
	if len(names) > 0 {
		return names, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && len(i.HardwareAddr) == 6 && isCard(i.Name) {
			names = append(names, i.Name)
		}
	}
	if len(names) == 0 {
		klog.InfoS("No network card is up: only targets on this host can be reached; name interfaces with --interface")
	}
	return names, nil
}

// isCard says whether an interface is hardware (a virtual machine's, too) or a bond of it. Members of a bond are not used
// beside it, and bridges, VLANs, tunnels and containers' interfaces only if they are named.
func isCard(name string) bool {
	dir := filepath.Join("/sys/class/net", name)
	exists := func(elem string) bool {
		_, err := os.Stat(filepath.Join(dir, elem))
		return err == nil
	}
	return (exists("device") || exists("bonding")) && !exists("bonding_slave")
}

func interfaceNames() []string {
	all, err := net.Interfaces()
	if err != nil {
		return nil // it is only for the message
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}
