package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// takeoverTimeout is how long one try to take a device over may take; a Detach of the volume waits that long at most.
	takeoverTimeout = 5 * time.Second
	// takeoverPause is between tries.
	takeoverPause = time.Second
	// notYetPause is between tries while the kernel holds on to the dead server.
	notYetPause = 50 * time.Millisecond
)

// adopt decides what becomes of a record that an earlier process left: its device is gone, or nobody was ever told of it and
// it is removed, or it is taken over in the background.
func (m *Manager) adopt(rec *record) {
	volume := rec.Options.VolumeID
	if rec.BootID != m.bootID {
		m.forget(volume, "it is from before the last boot")
		return
	}
	front := m.frontend(rec.Device.Frontend)
	if front == nil {
		klog.ErrorS(ErrNoFrontend, "Attachment of an earlier initiator is left alone", "volume", volume, "frontend", rec.Device.Frontend)
		return
	}
	exists, err := front.Exists(rec.Device)
	if err == nil && !exists {
		if err = front.Remove(m.stopped, rec.Device); err == nil { // what a detach that was cut off has left of it
			m.forget(volume, "the kernel no longer has its device")
			return
		}
	}
	if err != nil {
		klog.ErrorS(err, "Cannot tell what is left of a device, looking again", "volume", volume)
	}
	a := m.newAttachment(rec.Options, recovering)
	a.front, a.reason, a.rec, a.recorded = front, rec.Reason, *rec, true
	a.message = "being taken over from an earlier initiator"
	if err := m.put(a); err != nil {
		klog.ErrorS(err, "Attachment of an earlier initiator is left alone", "volume", volume)
		return
	}
	m.tasks.Go(func() { m.takeOver(a) })
}

// trusted says whether it is known for certain that the volume has no device, given that there is no attachment of it. A record that
// is there all the same cannot be trusted: making a second device, or saying that there is none, could cost data.
func (m *Manager) trusted(volumeID string) error {
	path := m.records.path(volumeID)
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if _, err = m.records.read(path); err == nil {
			err = fmt.Errorf("record %s: it was not taken over when the initiator started (its log says why)", path)
		}
	}
	return fmt.Errorf("%w: %w; `aoe-csi doctor` says what to do", ErrDamaged, err)
}

// forget removes a record that stands for nothing.
func (m *Manager) forget(volumeID, why string) {
	klog.InfoS("Record of an earlier initiator is removed", "volume", volumeID, "reason", why)
	if err := m.records.remove(volumeID); err != nil {
		klog.ErrorS(err, "Record of an earlier initiator is not removed", "volume", volumeID)
	}
}

// takeOver tries until the device is served, or gone, or the manager stops.
func (m *Manager) takeOver(a *attachment) {
	start := time.Now()
	for {
		unlock, err := m.locks.lock(m.stopped, a.opts.VolumeID)
		if err != nil {
			return
		}
		if m.get(a.opts.VolumeID) != a || a.at() != recovering {
			unlock()
			return
		}
		ctx, cancel := context.WithTimeout(m.stopped, takeoverTimeout)
		err = a.takeOver(ctx)
		cancel()
		unlock()
		if err == nil {
			if a.at() != attached { // there was nothing to take over
				return
			}
			klog.InfoS("Took over from an earlier initiator", "volume", a.opts.VolumeID, "took", time.Since(start).Round(time.Millisecond))
			return
		}
		klog.ErrorS(err, "Could not take over from an earlier initiator, trying again", "volume", a.opts.VolumeID)
		a.setStage(recovering, "cannot take it over yet: "+err.Error())
		select {
		case <-m.stopped.Done():
			return
		case <-time.After(takeoverPause):
		}
	}
}

// takeOver is one try. Everything that can fail for want of the target comes before the kernel hears of us.
func (a *attachment) takeOver(ctx context.Context) error {
	exists, err := a.front.Exists(a.rec.Device)
	if err != nil {
		return err
	}
	if !a.rec.Started || !exists {
		klog.InfoS("Attachment was cut off before anybody could use its device, or after nobody could any more", "volume", a.opts.VolumeID)
		if err := a.front.Remove(ctx, a.rec.Device); err != nil {
			return err
		}
		return a.takeDown(ctx)
	}
	if a.target() == nil {
		err := a.open(ctx, takeoverTimeout, true)
		if errors.Is(err, initiator.ErrFenced) {
			return a.removeUnserved(ctx, fmt.Sprintf("I/O that %s had not answered was failed: %v", a.opts.Target, err))
		}
		if err != nil {
			return err
		}
		condition := a.target().State()
		if err := a.save(func(r *record) { r.Initiator, r.Incarnation = a.m.id.String(), condition.Incarnation }); err != nil {
			return err
		}
	}
	if have, want := a.target().Info().Sectors*sectorBytes, a.rec.Device.Params.SizeBytes; have < want {
		return fmt.Errorf("take over %s: the target has %d bytes, the device %d", a.opts.VolumeID, have, want)
	}
	for {
		err := a.takeDevice(ctx)
		if !errors.Is(err, blockdev.ErrNotYet) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(notYetPause):
		}
	}
}

// takeDevice makes this process the device's server.
func (a *attachment) takeDevice(ctx context.Context) error {
	disk, err := a.front.Recover(ctx, a.rec.Device)
	if err != nil {
		return err
	}
	if err = a.serve(ctx, disk); err == nil {
		err = disk.Start(ctx)
	}
	if err == nil {
		err = a.save(func(r *record) { r.Device = disk.State() })
	}
	if err != nil {
		return errors.Join(err, a.letGo(disk, errors.Is(err, blockdev.ErrNotYet)))
	}
	a.setStage(attached, "")
	go a.follow() // ends with the attachment
	a.changedNow()
	return nil
}

// letGo leaves the device to the next try. The target is let go of first, unless the device never handed out a request
// (untouched): until then requests are with it, and their data in the device's memory. They are not answered, since the kernel will
// ask again.
func (a *attachment) letGo(disk blockdev.Device, untouched bool) error {
	a.mu.Lock()
	p, dev := a.pump, a.dev
	a.mu.Unlock()
	if err := dev.Shard().Do(context.Background(), p.abandon); err != nil {
		return err
	}
	if !untouched {
		if err := a.closeTarget(context.Background()); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.disk, a.pump = nil, nil
	a.mu.Unlock()
	return disk.Close()
}
