package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// probeTimeout bounds what is asked of the target before the kernel is asked: NBD stops the queue to change a size, and while a
	// request is stuck that holds up every NBD device of the host.
	probeTimeout = 5 * time.Second
	// resizeTimeout bounds the kernel's part. It goes on when nobody waits any more, until the requests that are out have ended.
	resizeTimeout = 5 * time.Second
	// probeEvery is how soon the target is asked again.
	probeEvery = 100 * time.Millisecond
	// smallerTries is how often it may say that it is smaller than wanted.
	smallerTries = 3
	// settleEvery is how often the requests are looked at.
	settleEvery = 5 * time.Millisecond
)

// Resize makes the volume's device as large as its target says it is, at least wanted bytes (0: whatever it is). A device is never made
// smaller, and one that has the wanted size already is success. Errors: ErrNotNow while the target is smaller, does not answer, or
// has requests stuck; blockdev.ErrCannotGrow where the kernel cannot do it to a live device.
func (m *Manager) Resize(ctx context.Context, volumeID string, wanted uint64) (Status, error) {
	if volumeID == "" {
		return Status{}, fmt.Errorf("resize: %w: volume ID is empty", ErrInvalid)
	}
	unlock, err := m.locks.lock(ctx, volumeID)
	if err != nil {
		return Status{}, err
	}
	defer unlock()
	a := m.get(volumeID)
	switch {
	case a == nil:
		err = ErrNotAttached
	case a.at() != attached:
		err = fmt.Errorf("%w: it is being attached, taken over or detached", ErrNotNow)
	case a.disconnected():
		err = fmt.Errorf("%w: somebody else disconnected %s; attach the volume again", ErrConflict, a.device().Path())
	default:
		err = a.resize(ctx, wanted)
	}
	if err != nil {
		return Status{}, fmt.Errorf("resize %s: %w", volumeID, err)
	}
	return a.status(), nil
}

func (a *attachment) resize(ctx context.Context, wanted uint64) error {
	have, err := a.kernelSize()
	if err == nil && (wanted == 0 || have < wanted) {
		err = a.grow(ctx, have, wanted)
	}
	if err != nil {
		return err
	}
	return a.saveSize()
}

// grow asks the target, then the kernel, and reads back what the kernel made of it.
func (a *attachment) grow(ctx context.Context, have, wanted uint64) error {
	said, err := a.probe(ctx, wanted)
	if err != nil || said <= have {
		return err
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resizeTimeout)
	defer cancel()
	disk := a.device()
	err = disk.Resize(ctx, said)
	if errors.Is(err, blockdev.ErrCannotGrow) {
		return fmt.Errorf(`%w; %s stays at %d bytes and has %d when it is attached the next time: restart the pod, or detach and attach it. `+
			`New volumes with the StorageClass parameter onlineExpansion: "true" get a front end that can`, err, disk.Path(), have, said)
	}
	if err != nil {
		return err
	}
	now, err := a.kernelSize()
	if err == nil && now < said {
		err = fmt.Errorf("the kernel has %s with %d bytes after it was made %d", disk.Path(), now, said)
	}
	if err != nil {
		return err
	}
	klog.InfoS("Device has grown", "volume", a.opts.VolumeID, "device", disk.Path(), "from", have, "to", now,
		"took", time.Since(start).Round(time.Millisecond))
	return nil
}

// probe has the target say its size, and makes sure that requests flow.
func (a *attachment) probe(ctx context.Context, wanted uint64) (said uint64, err error) {
	ctx, cancel := waitContext(ctx, time.Now().Add(probeTimeout))
	defer cancel()
	if said, err = a.askSize(ctx, wanted); err != nil {
		return 0, err
	}
	return said, a.settle(ctx)
}

// askSize has the target prove its identity anew, and with it say its size in bytes.
func (a *attachment) askSize(ctx context.Context, wanted uint64) (uint64, error) {
	for try := 1; ; try++ {
		info, err := a.target().Reconfirm(ctx)
		if err != nil {
			return 0, fmt.Errorf("%w: %s does not say its size: %w", ErrNotNow, a.opts.Target, err)
		}
		said := info.Sectors * sectorBytes
		if said >= wanted {
			return said, nil
		}
		if try == smallerTries {
			return 0, fmt.Errorf("%w: %s says that it has %d bytes, not %d: let the volume grow on its shelf first", ErrNotNow, a.opts.Target, said, wanted)
		}
		select {
		case <-ctx.Done():
		case <-time.After(probeEvery):
		}
	}
}

// settle waits until every request that is out now has ended: then none is stuck.
func (a *attachment) settle(ctx context.Context) error {
	a.mu.Lock()
	p, dev := a.pump, a.dev
	a.mu.Unlock()
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for mark := uint64(0); ; {
		var oldest uint64
		err := dev.Shard().Do(ctx, func() {
			if mark == 0 {
				mark = p.submitted + 1
			}
			oldest = p.oldest()
		})
		if err == nil && (oldest == 0 || oldest >= mark) && dev.State().Phase == initiator.PhaseLive {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: requests to %s wait for an answer", ErrNotNow, a.opts.Target)
		case <-tick.C:
		}
	}
}

// kernelSize is the device's size in bytes as the kernel has it. Reading it opens no device, which could wait for one.
func (a *attachment) kernelSize() (uint64, error) {
	path := filepath.Join(a.m.sysfs, filepath.Base(a.device().Path()), "size")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", a.device().Path(), err)
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %s: %w", a.device().Path(), path, err)
	}
	return sectors * sectorBytes, nil
}

// saveSize brings the record up to date, also after a growth that the kernel finished when nobody waited any more.
func (a *attachment) saveSize() error {
	state := a.device().State()
	a.mu.Lock()
	known := a.rec.Device.Params.SizeBytes == state.Params.SizeBytes
	a.mu.Unlock()
	if known {
		return nil
	}
	if err := a.save(func(r *record) { r.Device = state }); err != nil {
		return err
	}
	a.m.notify()
	return nil
}
