//go:build vm

package lab

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// complaints are what the kernel says when I/O has failed or does not end.
var complaints = []string{"I/O error", "operation not supported error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Remounting filesystem read-only", "blocked for more than"}

// kernelLogEvery is how often the kernel's log is read, which holds far more than it says meanwhile.
const kernelLogEvery = 200 * time.Millisecond

// Complaints reads the kernel's log from now on, as it is written, however long that takes. The function that it returns ends that, and
// fails the test for each complaint about I/O and for what could not be read.
func (l *Lab) Complaints() func() {
	l.t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, io.SeekEnd)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	stop, found := make(chan struct{}), make(chan []string, 1)
	go func() {
		defer func() { _ = unix.Close(fd) }()
		var all []string
		for last := false; ; {
			all = append(all, readComplaints(fd)...)
			if last {
				found <- all
				return
			}
			select {
			case <-stop:
				last = true
			case <-time.After(kernelLogEvery):
			}
		}
	}()
	return func() {
		l.t.Helper()
		close(stop)
		for _, line := range <-found {
			l.t.Errorf("the kernel says: %s", line)
		}
	}
}

// readComplaints reads what the log has; each read is of one message (Documentation/ABI/testing/dev-kmsg).
func readComplaints(fd int) (found []string) {
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, record)
		switch message := string(record[:max(0, n)]); {
		case errors.Is(err, unix.EAGAIN):
			return found
		case errors.Is(err, unix.EPIPE):
			found = append(found, "(some messages were overwritten before they could be read)")
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return append(found, "(its log cannot be read: "+err.Error()+")")
		case slices.ContainsFunc(complaints, func(bad string) bool { return strings.Contains(message, bad) }):
			found = append(found, message)
		}
	}
}

// NothingLeft fails the test if anything is left of an attachment: in the kernel (of the lab's front end, or of all), in the run directory, or in
// the initiator's eyes.
func (i *Initiator) NothingLeft() {
	i.l.t.Helper()
	patterns := []string{filepath.Join(i.Records(), "*")}
	if i.l.Frontend != "ublk" {
		patterns = append(patterns, "/sys/block/nbd*/pid")
	}
	if i.l.Frontend != "nbd" {
		patterns = append(patterns, "/sys/block/ublkb*", "/sys/class/ublk-char/*")
	}
	for _, pattern := range patterns {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			i.l.t.Errorf("left: %v, %v", found, err)
		}
	}
	if list, err := i.Attachments(time.Minute); err != nil || len(list) > 0 {
		i.l.t.Errorf("left attached: %v, %v", list, err)
	}
	entries, err := os.ReadDir(i.Dir)
	if err != nil {
		i.l.t.Error(err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeSocket != 0 && e.Name() != filepath.Base(i.Socket()) {
			i.l.t.Errorf("left: socket %s", e.Name())
		}
	}
	if out, err := i.CLI(time.Minute, "doctor", "--run-dir", i.Dir, "--state-dir", filepath.Join(i.Dir, "state")); err != nil {
		i.l.t.Errorf("doctor: %v\n%s", err, out)
	}
}
