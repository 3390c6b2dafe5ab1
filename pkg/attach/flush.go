package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// flushing is a flush of the device under way. It can take as long as the target stays silent, so it has a goroutine of
// its own, which ends when the device's requests have ended one way or the other.
type flushing struct {
	done chan struct{} // closed when err is valid
	err  error
	// stale: an Attach came after it began; guarded by the attachment's mu.
	stale bool
}

// flush starts a flush of the device, or returns the one that an earlier call started.
func (a *attachment) flush() *flushing {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flushing == nil {
		f := &flushing{done: make(chan struct{})}
		path, dev := a.disk.Path(), a.dev
		a.flushing = f
		go func() {
			defer close(f.done)
			f.err = a.makeDurable(path, dev)
		}()
	}
	return a.flushing
}

// makeDurable has all that was written to the device reach the medium. It fails with EBUSY while the device is mounted.
//
// This process does not wait in the kernel for a device that it serves: killed there, it could not end before another one serves the device, and
// that is not started before this one has ended.
func (a *attachment) makeDurable(path string, dev *initiator.Device) error {
	mode := os.O_RDWR
	if a.opts.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil || a.opts.ReadOnly {
		return err
	}
	// Whoever closed the device last has written back what was dirty. Only somebody who has it open still can have left more.
	if who, err := a.m.cfg.host.holder(path); err != nil || who != "" {
		if err := flushBuffers(path); err != nil {
			return err
		}
	}
	return flushTarget(dev)
}

// flushBuffers has another process write back what is dirty.
func flushBuffers(path string) error {
	out, err := exec.Command("blockdev", "--flushbufs", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("blockdev --flushbufs %s: %w: %.200s", path, err, bytes.TrimSpace(out))
	}
	return nil
}

// flushTarget flushes the target's cache, if it has one that can be flushed.
func flushTarget(dev *initiator.Device) error {
	if !dev.Info().Flush {
		return nil
	}
	done := make(answer, 1)
	request := &initiator.Request{Op: initiator.OpFlush, Done: done}
	err := dev.Shard().Do(context.Background(), func() { dev.Submit(request) })
	if errors.Is(err, initiator.ErrClosed) {
		return ErrStopping
	}
	if err != nil {
		return err
	}
	return <-done
}

// answer receives what became of one request.
type answer chan error

// Complete implements initiator.Completer.
func (a answer) Complete(r *initiator.Request) { a <- r.Err }
