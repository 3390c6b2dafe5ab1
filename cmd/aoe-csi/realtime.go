package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// setScheduler gives a thread, 0 for the calling one, SCHED_RR at its lowest priority or SCHED_NORMAL.
func setScheduler(thread int, policy uint32) error {
	// What a thread starts does not inherit it. To take the flag off again would need a capability that the rest may not.
	attributes := unix.SchedAttr{Policy: policy, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if policy == unix.SCHED_RR {
		attributes.Priority = 1
	}
	return unix.SchedSetAttr(thread, &attributes, 0)
}

// pressureFile is where the kernel tells how long tasks have waited for memory (Documentation/accounting/psi.rst).
const pressureFile = "/proc/pressure/memory"

const (
	// shortage is that tasks have waited for memory for so long within shortageWindow.
	shortage       = 100 * time.Millisecond
	shortageWindow = time.Second
	// plenty is how long there must be no shortage until memory is not short any more.
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
		err = watchMemory()
		klog.InfoS("The kernel does not tell when memory is short, so the priority is real-time all the time", "err", err)
		for {
			setThreads(unix.SCHED_RR) // again and again, for threads that have begun since
			pause(shortageWindow)
		}
	}()
	<-started
}

// watchMemory switches at the beginning and at the end of each shortage, and returns only if it cannot.
func watchMemory() error {
	await, err := shortages()
	if err != nil {
		return err
	}
	for short := false; ; {
		most := time.Duration(-1)
		if short {
			most = plenty
		}
		again, err := await(most)
		switch {
		case err != nil:
			return err
		case again:
			setThreads(unix.SCHED_RR) // each time, for threads that have begun since
			if !short {
				klog.InfoS("Memory is short: real-time priority until it is not")
			}
			short = true
		default:
			setThreads(unix.SCHED_NORMAL)
			klog.InfoS("Memory is not short any more: priority as usual")
			short = false
		}
	}
}

// shortages returns what waits for a shortage, for at most so long, or for ever if that is negative, and says whether there was one.
func shortages() (func(most time.Duration) (bool, error), error) {
	// Not an os.File: the runtime's poller would see the events first, and the kernel tells of each once only.
	trigger, err := unix.Open(pressureFile, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		ask := fmt.Sprintf("some %d %d\x00", shortage.Microseconds(), shortageWindow.Microseconds())
		if _, err = unix.Write(trigger, []byte(ask)); err == nil {
			return func(most time.Duration) (bool, error) { return triggered(trigger, most) }, nil
		}
		_ = unix.Close(trigger) // nothing is lost with it
	}
	// Not everybody may write there: AppArmor's usual profile of containers forbids it.
	klog.InfoS("The kernel is asked once a second whether memory is short (to be told needs CAP_SYS_RESOURCE and no AppArmor)", "err", err)
	file, err := os.Open(pressureFile)
	if err != nil {
		return nil, err
	}
	before, err := waited(file)
	if err != nil {
		return nil, err
	}
	return func(most time.Duration) (bool, error) {
		for began := time.Now(); most < 0 || time.Since(began) < most; {
			pause(shortageWindow)
			now, err := waited(file)
			if err != nil {
				return false, err
			}
			grown := now - before
			before = now
			if grown >= shortage {
				return true, nil
			}
		}
		return false, nil
	}, nil
}

// pause is time.Sleep in this thread: the end of the other comes from another one, which need not be real-time. A signal may end it.
func pause(d time.Duration) { _, _ = unix.Poll(nil, int(d.Milliseconds())) }

// triggered waits for the kernel to tell of a shortage.
func triggered(fd int, most time.Duration) (bool, error) {
	events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
	timeout := -1
	if most >= 0 {
		timeout = int(most.Milliseconds())
	}
	for {
		n, err := unix.Poll(events, timeout)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("poll for a shortage of memory: %w", err)
		case events[0].Revents&unix.POLLERR != 0:
			return false, errors.New("the kernel tells of shortages of memory no more")
		default:
			return n > 0, nil
		}
	}
}

// waited is for how long some task or other has waited for memory since the host was started.
func waited(file *os.File) (time.Duration, error) {
	var b [256]byte
	n, err := file.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	var avg10, avg60, avg300 float64
	var microseconds int64
	if _, err := fmt.Sscanf(string(b[:n]), "some avg10=%f avg60=%f avg300=%f total=%d", &avg10, &avg60, &avg300, &microseconds); err != nil {
		return 0, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return time.Duration(microseconds) * time.Microsecond, nil
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
