package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// setScheduler gives a thread, 0 for the calling one, SCHED_RR at its lowest priority or SCHED_NORMAL.
func setScheduler(thread int, policy uint32) error {
	attributes := unix.SchedAttr{Policy: policy}
	if policy == unix.SCHED_RR {
		attributes.Priority, attributes.Flags = 1, unix.SCHED_FLAG_RESET_ON_FORK
	}
	return unix.SchedSetAttr(thread, &attributes, 0)
}

const (
	// shortage is what the kernel is asked to tell of: somebody has waited for memory for 100 ms within a second
	// (Documentation/accounting/psi.rst).
	shortage = "some 100000 1000000"
	// plenty is how long nothing must be told until memory is not short any more.
	plenty = 10 * time.Second
)

// realtimeWhenShort gives all threads of the process the lowest real-time priority while the host is short of memory, and returns at once.
//
// When memory is gone, whoever wants some searches, on every processor, for pages to give up, while all that could be given up is
// dirty and waits for this process to send or to store it. Real time lets it run before them. It also lets the kernel take for it what it
// denies to others: half of the reserve below the mark "min" (gfp_to_alloc_flags in mm/page_alloc.c, ALLOC_MIN_RESERVE). The
// kernel's limit for real time (sched_rt_runtime_us, 95 %) keeps busy threads from shutting everybody else out.
//
// Always would be too much. A thread that runs the moment it is woken gets one request at a time instead of many: NBD at depth 32 was 2.6 times
// slower. And every thread of a busy target would come before all else that the host does: on two processors the completion
// thread of the kernel's aoe driver waited until the driver stood still for good. Where the kernel does not tell (no CONFIG_PSI, or
// psi=0), it is always nevertheless.
func realtimeWhenShort() {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for ever: the thread itself must run when memory is short
		err := setScheduler(0, unix.SCHED_RR)
		close(started)
		if err != nil {
			klog.InfoS("No real-time priority: when memory is short, volumes of this host can make it run out (needs CAP_SYS_NICE)", "err", err)
			return
		}
		if err := watchMemory(); err != nil {
			klog.InfoS("The kernel does not tell when memory is short, so the priority is real-time all the time", "err", err)
			setThreads(unix.SCHED_RR)
		}
	}()
	<-started
}

// watchMemory switches at the beginning and at the end of each shortage, and returns only if it cannot.
func watchMemory() error {
	trigger, err := os.OpenFile("/proc/pressure/memory", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer trigger.Close()
	if _, err := trigger.WriteString(shortage + "\x00"); err != nil {
		return err
	}
	events := []unix.PollFd{{Fd: int32(trigger.Fd()), Events: unix.POLLPRI}}
	for short := false; ; {
		wait := -1
		if short {
			wait = int(plenty.Milliseconds())
		}
		n, err := unix.Poll(events, wait)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("poll for a shortage of memory: %w", err)
		case n == 0:
			short = false
			setThreads(unix.SCHED_NORMAL)
			klog.InfoS("Memory is not short any more: priority as usual")
		case events[0].Revents&unix.POLLERR != 0:
			return errors.New("the kernel tells of shortages of memory no more")
		default:
			setThreads(unix.SCHED_RR) // each time, for threads that have begun since
			if !short {
				klog.InfoS("Memory is short: real-time priority until it is not")
			}
			short = true
		}
	}
}

// setThreads changes all threads of the process but the calling one, which stays as it is.
func setThreads(policy uint32) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		klog.ErrorS(err, "List threads")
		return
	}
	for _, task := range tasks {
		thread, err := strconv.Atoi(task.Name())
		if err != nil || thread == unix.Gettid() {
			continue
		}
		if err := setScheduler(thread, policy); err != nil && !errors.Is(err, unix.ESRCH) { // it may have ended
			klog.ErrorS(err, "Change a thread's priority", "thread", thread)
		}
	}
}
