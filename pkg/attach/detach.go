package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// defaultDetachTimeout is how long a detach waits for a target that does not answer, over all its repetitions.
	defaultDetachTimeout = 5 * time.Minute
	// answerMargin is how long before the caller's deadline he gets his answer, so that it is ErrPending and not silence.
	answerMargin = 500 * time.Millisecond
	// idleEvery is how often the kernel is asked whether requests are out.
	idleEvery = 10 * time.Millisecond
)

// Detach flushes and removes the device; not attached is success. While the target does not answer and I/O is pending the error
// matches ErrPending, until timeout (0: 5 min) has passed since the first call: then what is outstanding is given up. With force
// that happens at once, also to a device that is mounted. ErrInUse: the device is mounted.
func (m *Manager) Detach(ctx context.Context, volumeID string, force bool, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = defaultDetachTimeout
	}
	asked := time.Now() // the time that another call has the volume counts
	unlock, err := m.locks.lock(ctx, volumeID)
	if err != nil {
		return err
	}
	defer unlock()
	a := m.get(volumeID)
	if a == nil {
		return m.trusted(volumeID)
	}
	switch a.at() {
	case attaching, removed:
		return a.takeDown(ctx)
	case recovering:
		return a.detachUnserved(ctx, force, a.giveUpAt(asked, timeout))
	case attached, detaching:
	}
	return a.detach(ctx, asked, force, timeout)
}

// giveUpAt is when a detach stops waiting, counted from its first call.
func (a *attachment) giveUpAt(asked time.Time, timeout time.Duration) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.detachSince.IsZero() {
		a.detachSince = asked
	}
	return a.detachSince.Add(timeout)
}

func (a *attachment) detach(ctx context.Context, asked time.Time, force bool, timeout time.Duration) error {
	if force {
		a.noteGivenUp("the detach was forced")
	}
	if !force && !a.disconnected() { // else its number may be another volume's by now
		err := a.quiesce(ctx, a.giveUpAt(asked, timeout))
		switch {
		case errors.Is(err, errGiveUp):
			klog.ErrorS(err, "Detach gives up outstanding I/O: the target did not answer in time", "volume", a.opts.VolumeID,
				"target", a.opts.Target, "timeout", timeout)
			a.noteGivenUp(fmt.Sprintf("no answer for %v", timeout))
			force = true
		case errors.Is(err, ErrInUse):
			a.mu.Lock()
			a.detachSince = time.Time{}
			a.mu.Unlock()
			a.setStage(attached, "")
			return err
		case err != nil:
			return err
		}
	}
	a.setStage(detaching, "")
	path := a.device().Path()
	if err := a.takeDown(ctx); err != nil {
		a.setStage(a.at(), err.Error())
		return err
	}
	klog.InfoS("Detached", "volume", a.opts.VolumeID, "target", a.opts.Target, "device", path, "force", force,
		"took", time.Since(asked).Round(time.Millisecond))
	return nil
}

// errGiveUp: the detach timeout has passed.
var errGiveUp = errors.New("detach timeout has passed")

// quiesce flushes the device and waits until no request is out.
func (a *attachment) quiesce(ctx context.Context, limit time.Time) error {
	wait, cancel := waitContext(ctx, limit)
	defer cancel()
	var f *flushing
	for stale := true; stale; {
		f = a.flush()
		select {
		case <-f.done:
		case <-wait.Done():
			return a.notYet(ctx, limit)
		}
		a.mu.Lock()
		stale = f.stale // the device was used since: flushed, and found unmounted, once more
		a.flushing = nil
		a.mu.Unlock()
	}
	switch {
	case errors.Is(f.err, unix.EBUSY):
		return fmt.Errorf("%w: %s is mounted or held open exclusively; unmount it first", ErrInUse, a.device().Path())
	case f.err != nil:
		// Repeating it would not help: the error went to whoever wrote, too.
		klog.ErrorS(f.err, "Detach goes on after a flush that failed", "volume", a.opts.VolumeID, "device", a.device().Path())
		a.m.givenUp.set(a.opts.VolumeID, fmt.Sprintf("the last flush of %s failed (%v), so writes since the one before may be lost", a.opts.Target, f.err))
	}
	tick := time.NewTicker(idleEvery)
	defer tick.Stop()
	for {
		if idle, err := a.device().Idle(); err != nil || idle {
			return err
		}
		select {
		case <-wait.Done():
			return a.notYet(ctx, limit)
		case <-tick.C:
		}
	}
}

// waitContext ends at the limit, or early enough before ctx does for an answer to get through.
func waitContext(ctx context.Context, limit time.Time) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		margin := min(answerMargin, time.Until(deadline)/4)
		if early := deadline.Add(-margin); early.Before(limit) {
			limit = early
		}
	}
	return context.WithDeadline(ctx, limit)
}

// notYet is the answer while I/O is pending: ErrPending, or errGiveUp after the limit.
func (a *attachment) notYet(ctx context.Context, limit time.Time) error {
	if !time.Now().Before(limit) {
		return errGiveUp
	}
	message := fmt.Sprintf("%s does not answer and I/O is pending; it is given up in %v", a.opts.Target,
		time.Until(limit).Round(time.Second))
	a.setStage(detaching, message)
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %s", ErrPending, message)
}

// giveUp fails everything that is outstanding, and what may still come until the device is gone.
func (a *attachment) giveUp(ctx context.Context) error {
	a.mu.Lock()
	p, dev := a.pump, a.dev
	a.mu.Unlock()
	if p == nil || dev == nil {
		return nil
	}
	err := dev.Shard().Do(ctx, p.refuse)
	if err == nil {
		err = dev.Fail(ctx)
	}
	if errors.Is(err, initiator.ErrClosed) {
		return nil
	}
	return err
}

// detachUnserved removes the device of an earlier process that is not taken over yet.
func (a *attachment) detachUnserved(ctx context.Context, force bool, limit time.Time) error {
	if !force && time.Now().Before(limit) {
		return fmt.Errorf("%w: %s is being taken over from an earlier initiator; it is given up in %v", ErrPending,
			a.opts.VolumeID, time.Until(limit).Round(time.Second))
	}
	return a.removeUnserved(ctx, fmt.Sprintf("the device was removed before an initiator had taken it over: I/O that %s had not answered was failed", a.opts.Target))
}

// removeUnserved removes the device of an earlier process, which nobody will take over, and says why; what the kernel waits for fails.
func (a *attachment) removeUnserved(ctx context.Context, why string) error {
	a.mu.Lock()
	front, state := a.front, a.rec.Device
	a.mu.Unlock()
	if err := front.Remove(ctx, state); err != nil {
		return err
	}
	a.m.givenUp.set(a.opts.VolumeID, why)
	klog.InfoS("Removed a device that nobody served", "volume", a.opts.VolumeID, "device", state.Number, "reason", why)
	a.setStage(removed, "")
	return a.takeDown(ctx)
}
