package attach

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// unmountedEvery is how often End looks whether a device is still mounted.
const unmountedEvery = 200 * time.Millisecond

// lastTry is what the removal of a device gets at least, however late it is: one that is left keeps the machine from going down.
const lastTry = 2 * time.Second

// End is Close for a machine that goes down, where no initiator follows: whatever used a device that nobody serves would wait for
// ever, and the machine with it. While the devices are still served, everything that is dirty is written back, for at most
// six tenths of the time that ctx leaves, and mounts get until eight tenths of it to go away. Then all devices are removed, which may
// take lastTry longer; what is written to one that is still mounted fails.
func (m *Manager) End(ctx context.Context) error {
	left := time.Minute
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	begin := time.Now()
	writeBack(ctx, left*6/10)
	var wg sync.WaitGroup
	for _, a := range m.all() {
		wg.Go(func() { m.end(ctx, a.opts.VolumeID, begin.Add(left*8/10)) })
	}
	wg.Wait()
	return m.Close()
}

// writeBack has the kernel write what is dirty, also in file systems that this process cannot see.
func writeBack(ctx context.Context, limit time.Duration) {
	done := make(chan struct{})
	begin := time.Now()
	go func() { // ends with the process, if somebody's device never answers
		unix.Sync()
		close(done)
	}()
	select {
	case <-done:
		klog.InfoS("The machine goes down: everything is written back", "took", time.Since(begin).Round(time.Millisecond))
	case <-ctx.Done():
	case <-time.After(limit):
		klog.InfoS("The machine goes down, and not everything could be written back in time", "waited", limit.Round(time.Millisecond))
	}
}

// end detaches a volume, by force once the patience is over.
func (m *Manager) end(ctx context.Context, volumeID string, patience time.Time) {
	for {
		wait, cancel := context.WithDeadline(ctx, patience)
		err := m.Detach(wait, volumeID, false, max(time.Until(patience), time.Millisecond))
		cancel()
		switch {
		case err == nil:
			return
		case errors.Is(err, ErrInUse) && time.Now().Before(patience):
			time.Sleep(unmountedEvery)
			continue
		}
		klog.InfoS("The machine goes down: a device that is still in use is removed", "volume", volumeID, "reason", err)
		m.remove(ctx, volumeID)
		return
	}
}

// remove detaches a volume by force.
func (m *Manager) remove(ctx context.Context, volumeID string) {
	left := lastTry
	if deadline, ok := ctx.Deadline(); ok {
		left = max(left, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer cancel()
	if err := m.Detach(ctx, volumeID, true, 0); err != nil {
		klog.ErrorS(err, "A device is left that nobody will serve", "volume", volumeID)
	}
}
