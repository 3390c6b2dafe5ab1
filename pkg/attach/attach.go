package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// defaultTimeout is for finding and identifying a target.
	defaultTimeout = 10 * time.Second
	// closeTimeout is how long the end of a session may take; the next one replaces it anyway.
	closeTimeout = 2 * time.Second
	// maxVolumeID bounds the names of records, in which a byte can take three.
	maxVolumeID = 80
	// maxMACs bounds how many frames an attachment begins with.
	maxMACs = 16
)

// check completes the options and refuses what makes no sense.
func (o *Options) check() error {
	if o.Frontend == "" {
		o.Frontend = FrontendAuto
	}
	switch {
	case o.VolumeID == "" || len(o.VolumeID) > maxVolumeID:
		return fmt.Errorf("%w: a volume ID has 1 to %d bytes", ErrInvalid, maxVolumeID)
	case o.Target.Shelf > aoe.MaxShelf || o.Target.Slot > aoe.MaxSlot:
		return fmt.Errorf("%w: target %s is not one address", ErrInvalid, o.Target)
	case len(o.MACs) > maxMACs:
		return fmt.Errorf("%w: %d MAC addresses, a target has at most %d", ErrInvalid, len(o.MACs), maxMACs)
	case o.DeadTime < 0:
		return fmt.Errorf("%w: dead time %v", ErrInvalid, o.DeadTime)
	case !slices.Contains(frontendNames, o.Frontend):
		return fmt.Errorf("%w: front end %q is none of %v", ErrInvalid, o.Frontend, frontendNames)
	}
	return nil
}

// Attach makes the target a block device and returns when that can be used. Repeated with the same volume it returns the same
// attachment, and takes back a Detach that has not come to its end. A target without sessions is refused while the kernel's own driver has
// it, too. Errors match this package's, initiator's (ErrNoAnswer, ErrIdentity, ErrNotAdmitted, ErrExists, ErrNoInterface) or blockdev's. timeout is for finding and identifying the target; 0: 10 s.
func (m *Manager) Attach(ctx context.Context, opts Options, timeout time.Duration) (Status, error) {
	if err := opts.check(); err != nil {
		return Status{}, err
	}
	for _, name := range opts.Interfaces {
		if !slices.Contains(m.cfg.Interfaces, name) {
			return Status{}, fmt.Errorf("%w: interface %s is not the initiator's (it has %v)", ErrInvalid, name, m.cfg.Interfaces)
		}
	}
	unlock, err := m.locks.lock(ctx, opts.VolumeID)
	if err != nil {
		return Status{}, err
	}
	defer unlock()
	if a := m.get(opts.VolumeID); a != nil {
		again, err := a.again(ctx, opts)
		if err != nil || again {
			return a.status(), err
		}
	}
	if err := m.trusted(opts.VolumeID); err != nil {
		return Status{}, err
	}
	m.givenUp.forget(opts.VolumeID)
	a := m.newAttachment(opts, attaching)
	if err := m.put(a); err != nil {
		return Status{}, err
	}
	start := time.Now()
	if err := a.bringUp(ctx, timeout); err != nil {
		// What was made is taken down; if even that fails the attachment stays, and is taken down by the next Attach or Detach.
		if downErr := a.takeDown(context.WithoutCancel(ctx)); downErr != nil {
			klog.ErrorS(downErr, "Attachment that failed is not gone yet", "volume", opts.VolumeID)
			a.setStage(removed, downErr.Error())
		}
		return Status{}, err
	}
	s := a.status()
	klog.InfoS("Attached", "volume", opts.VolumeID, "target", opts.Target, "device", s.Device, "bytes", s.SizeBytes,
		"session", s.Info.Session, "took", time.Since(start).Round(time.Millisecond))
	return s, nil
}

// again answers an Attach of a volume that is there already; false when the rest of an earlier attachment was
// cleared away and a new one can be made.
func (a *attachment) again(ctx context.Context, opts Options) (bool, error) {
	switch a.at() {
	case attaching, removed:
		return false, a.takeDown(ctx) // under the lock it can only be what an earlier Attach or Detach could not finish
	case recovering:
		return false, fmt.Errorf("%w: %s is being taken over from an earlier initiator", ErrPending, a.opts.VolumeID)
	case attached, detaching:
	}
	if err := a.same(opts); err != nil {
		return false, err
	}
	if err := a.target().State().Err; errors.Is(err, initiator.ErrFenced) {
		return false, fmt.Errorf("%w; detach %s first", err, opts.VolumeID)
	}
	if a.disconnected() {
		klog.InfoS("Device was disconnected by somebody else, making another", "volume", opts.VolumeID, "device", a.device().Path())
		return false, a.takeDown(ctx)
	}
	a.mu.Lock()
	a.detachSince = time.Time{}
	if a.flushing != nil {
		a.flushing.stale = true
	}
	a.mu.Unlock()
	a.setStage(attached, "")
	return true, nil
}

// disconnected says whether somebody else ended the device.
func (a *attachment) disconnected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pump != nil && a.pump.gone.Load()
}

// same says whether the options mean what is there.
func (a *attachment) same(opts Options) error {
	switch {
	case a.opts.Target != opts.Target:
		return fmt.Errorf("%w: %s is %s, not %s; detach it first", ErrConflict, opts.VolumeID, a.opts.Target, opts.Target)
	case a.opts.Generation != opts.Generation:
		return fmt.Errorf("%w: %s has generation %q, not %q; detach it first", ErrConflict, opts.VolumeID, a.opts.Generation, opts.Generation)
	case a.opts.ReadOnly != opts.ReadOnly:
		return fmt.Errorf("%w: %s is read-only: %v; detach it first", ErrConflict, opts.VolumeID, a.opts.ReadOnly)
	case opts.Frontend != FrontendAuto && opts.Frontend != a.front.Name():
		return fmt.Errorf("%w: %s is attached through %s; detach it first", ErrConflict, opts.VolumeID, a.front.Name())
	}
	return nil
}

// bringUp goes from nothing to a device that can be used. The record is there before the kernel knows of the device.
func (a *attachment) bringUp(ctx context.Context, timeout time.Duration) error {
	front, reason, err := a.m.choose(ctx, a.opts)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.front, a.reason = front, reason
	a.mu.Unlock()
	has, kernelErr := a.m.cfg.host.kernelHas(a.opts.Target)
	if err := a.open(ctx, timeout, false); err != nil {
		return err
	}
	if err := refuseKernel(a.opts.Target, a.target().Info().Session, has, kernelErr); err != nil {
		return err
	}
	disk, err := front.Create(ctx, deviceParams(a.m.id.String(), a.opts, a.target().Info()))
	if err != nil {
		return err
	}
	if err := a.serve(ctx, disk); err != nil {
		return err
	}
	condition := a.target().State()
	err = a.save(func(r *record) {
		r.Reason, r.Device = reason, disk.State()
		r.Incarnation, r.CacheEpoch, r.Admission, r.Lost = condition.Incarnation, condition.CacheEpoch, condition.Admission, condition.Lost
	})
	if err != nil {
		return err
	}
	if err := disk.Start(ctx); err != nil {
		return err
	}
	if err := a.save(func(r *record) { r.Device, r.Started = disk.State(), true }); err != nil {
		return err
	}
	a.setStage(attached, "")
	go a.follow() // ends with the attachment
	a.changedNow()
	return nil
}

// open finds the target, has it prove what it is and opens the session.
func (a *attachment) open(ctx context.Context, timeout time.Duration, takeover bool) error {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	incarnation, err := a.m.id.next(time.Now(), a.rec.Incarnation)
	if err != nil {
		return err
	}
	dev, err := a.m.shard().Attach(ctx, initiator.DeviceConfig{
		Addr: a.opts.Target, Generation: a.opts.Generation, UUID: a.m.id.uuid, Incarnation: incarnation,
		DeadTime: a.opts.DeadTime, Interfaces: a.opts.Interfaces, PoolMax: a.m.cfg.PoolMax, ReadOnly: a.opts.ReadOnly,
		CacheEpoch: a.rec.CacheEpoch, Admission: a.rec.Admission, Lost: a.rec.Lost, Recovered: takeover, Changed: a.changedNow, MACs: a.opts.MACs,
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.dev = dev
	a.mu.Unlock()
	if dev.Info().Sectors == 0 {
		return fmt.Errorf("attach %s: %w: the target says that it has no sectors", a.opts.Target, initiator.ErrIdentity)
	}
	return nil
}

// takeDown removes whatever there is of an attachment whose device nobody needs any more. It can be repeated.
func (a *attachment) takeDown(ctx context.Context) error {
	if disk := a.device(); disk != nil {
		// The kernel may wait for what is outstanding before it lets go of a device.
		if err := a.giveUp(ctx); err != nil {
			return err
		}
		if err := disk.Stop(ctx); err != nil {
			return err
		}
		a.setStage(removed, "")
		if err := a.unserve(); err != nil {
			return err
		}
	}
	if err := a.closeTarget(ctx); err != nil {
		return err
	}
	if disk := a.device(); disk != nil {
		a.mu.Lock()
		a.disk, a.pump = nil, nil
		a.mu.Unlock()
		if err := disk.Close(); err != nil {
			klog.ErrorS(err, "Could not close a device", "device", disk.Path())
		}
	}
	return a.finish()
}

// closeTarget ends the session. The kernel has given up on whatever is still pending.
func (a *attachment) closeTarget(ctx context.Context) error {
	dev := a.target()
	if dev == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := dev.Detach(ctx, true); err != nil {
		return err
	}
	a.mu.Lock()
	a.dev = nil
	a.mu.Unlock()
	return nil
}
