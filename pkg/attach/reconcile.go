package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// Finding is something that is not as it should be.
type Finding struct {
	Object string // "device /dev/nbd3", "record /run/…"
	What   string
	Todo   string // for people; what was tried and did not help, if it was to be repaired
	// Fixable: it can be repaired without any risk to data. Fixed: it was.
	Fixable, Fixed bool
}

// examiner compares the devices in the kernel with what is known of them. What it cannot account for it keeps: only a device that
// carries this initiator's mark, of which there is neither attachment nor record, that nobody serves and nobody uses is removed.
type examiner struct {
	frontends []blockdev.Frontend
	records   records
	uuid      string // of this initiator; "" if it never ran here
	host      host
	// attached returns the device of the volume's attachment in this process.
	attached func(volumeID string) (device blockdev.State, exists bool)
	// lock keeps the volume from being attached or detached.
	lock func(ctx context.Context, volumeID string) (unlock func(), err error)
}

// examine finds what does not fit together, and with fix removes what is safe to remove.
func (e *examiner) examine(ctx context.Context, fix bool) ([]Finding, error) {
	var findings []Finding
	for _, front := range e.frontends {
		found, err := front.List() // before the records are read: a device's record is older than the device
		if err != nil {
			findings = append(findings, Finding{Object: "front end " + front.Name(), What: err.Error(), Todo: "its devices are left alone until they can be listed"})
			continue
		}
		for _, f := range found {
			finding, err := e.device(ctx, front, f, fix)
			if err != nil {
				return findings, err
			}
			if finding != nil {
				finding.Object = "device " + f.Path
				findings = append(findings, *finding)
			}
		}
	}
	good, bad, err := e.records.load()
	if err != nil {
		return findings, err
	}
	for _, d := range bad {
		findings = append(findings, Finding{Object: "record " + d.path, What: d.err.Error(),
			Todo: "unmount the volume's device, if there is one (lsblk, findmnt); then delete this file and run `aoe-csi doctor --fix`"})
	}
	return append(findings, e.unserved(good)...), nil
}

// unserved are records that nobody acts on.
func (e *examiner) unserved(good []*record) []Finding {
	var findings []Finding
	for _, rec := range good {
		volume := rec.Options.VolumeID
		if _, exists := e.attached(volume); exists {
			continue
		}
		if _, err := e.records.read(e.records.path(volume)); err != nil {
			continue // detached since: the record goes before the attachment does
		}
		finding := Finding{Object: "record " + e.records.path(volume), What: "no initiator serves this attachment, and its I/O waits",
			Todo: "start the initiator; if it runs, its log says why it left this attachment alone"}
		if !slices.ContainsFunc(e.frontends, func(f blockdev.Frontend) bool { return f.Name() == rec.Device.Frontend }) {
			finding.What = fmt.Sprintf("it was attached through %s, which this initiator does not offer", rec.Device.Frontend)
			finding.Todo = fmt.Sprintf("start the initiator with --frontend auto or %s", rec.Device.Frontend)
		}
		findings = append(findings, finding)
	}
	return findings
}

// device judges one device; nil if there is nothing to say about it.
func (e *examiner) device(ctx context.Context, front blockdev.Frontend, f blockdev.Found, fix bool) (*Finding, error) {
	if f.ID == "" {
		return e.nameless(front, f)
	}
	initiator, volume := splitDeviceID(f.ID)
	if initiator != e.uuid {
		if f.Served {
			return nil, nil
		}
		return &Finding{What: fmt.Sprintf("it is volume %s of another initiator (%s); it is not known whether that runs", volume, initiator),
			Todo: "leave it if a second initiator runs on this host; otherwise /var/lib/aoe-csi/initiator was lost: unmount the device, then `nbd-client -d` it"}, nil
	}
	if device, exists := e.attached(volume); exists && device.Frontend == front.Name() && device.Number == f.Number {
		return nil, nil
	}
	unlock, err := e.lock(ctx, volume)
	if err != nil {
		return nil, fmt.Errorf("look at volume %s: %w", volume, err)
	}
	defer unlock()
	finding, err := e.ours(front, f, volume)
	if err != nil || finding == nil || !finding.Fixable || !fix {
		return finding, err
	}
	if err := front.Remove(ctx, blockdev.State{Frontend: front.Name(), Number: f.Number, ID: f.ID}); err != nil {
		finding.Todo = "removing it failed: " + err.Error()
		return finding, nil
	}
	finding.Fixed, finding.Todo = true, "it was removed"
	return finding, nil
}

// ours judges a device of this initiator, whose volume is locked: what was listed may be gone by now, or attached.
func (e *examiner) ours(front blockdev.Frontend, f blockdev.Found, volume string) (*Finding, error) {
	found, err := front.List()
	if err != nil || !slices.ContainsFunc(found, func(now blockdev.Found) bool { return now.Number == f.Number && now.ID == f.ID }) {
		return nil, err
	}
	if device, exists := e.attached(volume); exists {
		if device.Frontend == front.Name() && device.Number == f.Number {
			return nil, nil
		}
		return &Finding{What: fmt.Sprintf("volume %s is attached as another device, and this one is left of it", volume),
			Todo: "detach the volume, then run `aoe-csi doctor --fix`"}, nil
	}
	good, bad, err := e.records.load()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(good, func(r *record) bool { return r.Options.VolumeID == volume }) {
		return nil, nil // its initiator is on its way, or unserved tells of it
	}
	if i := slices.IndexFunc(bad, func(d damaged) bool { return d.volumeID == volume || d.volumeID == "" }); i >= 0 {
		return &Finding{What: fmt.Sprintf("it is volume %s, and its record may be %s, which cannot be trusted; it is kept", volume, bad[i].path),
			Todo: "unmount the device; then delete that file and run `aoe-csi doctor --fix`"}, nil
	}
	what := fmt.Sprintf("it is volume %s, of which there is no record", volume)
	if f.Served {
		return &Finding{What: what + "; the process that made it still runs, so it is kept",
			Todo: "end that process (" + f.Path + "'s pid in /sys/block), then run `aoe-csi doctor --fix`"}, nil
	}
	switch who, err := e.host.holder(f.Path); {
	case err != nil:
		return &Finding{What: fmt.Sprintf("%s; whether anybody uses it cannot be told (%v), so it is kept", what, err),
			Todo: "run `aoe-csi doctor --fix` on the host, as root"}, nil
	case who != "":
		return &Finding{What: fmt.Sprintf("%s; it is used by %s, so it is kept, and its I/O waits", what, who),
			Todo: "unmount it or end its user; then run `aoe-csi doctor --fix`"}, nil
	}
	return &Finding{What: what + "; nobody serves it, and nobody uses it", Todo: "run `aoe-csi doctor --fix`, which removes it", Fixable: true}, nil
}

// nameless judges a device whose kernel cannot tell which volume it is. Only the numbers of those that are known can be compared, so
// none is ever removed.
func (e *examiner) nameless(front blockdev.Frontend, f blockdev.Found) (*Finding, error) {
	if f.Served {
		return nil, nil
	}
	good, bad, err := e.records.load()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(good, func(r *record) bool { return r.Device.Frontend == front.Name() && r.Device.Number == f.Number }) {
		return nil, nil
	}
	finding := &Finding{What: "it is one of ours that nobody serves, and no record names it; it is kept",
		Todo: fmt.Sprintf("when nothing uses it (lsblk, fuser), remove it with `ublk del -n %d`, or restart the host", f.Number)}
	if len(bad) > 0 {
		finding.What = fmt.Sprintf("it is one of ours that nobody serves; its record may be %s, which cannot be trusted; it is kept", bad[0].path)
	}
	return finding, nil
}

// splitDeviceID takes apart what deviceID made.
func splitDeviceID(id string) (initiator, volumeID string) {
	initiator, rest, _ := strings.Cut(strings.TrimPrefix(id, blockdev.Mark), ":")
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		rest = rest[:at]
	}
	return initiator, rest
}

// examiner is the manager's view.
func (m *Manager) examiner() *examiner {
	return &examiner{
		frontends: m.cfg.Frontends, records: m.records, uuid: m.id.String(), host: m.cfg.host,
		attached: func(volumeID string) (blockdev.State, bool) {
			a := m.get(volumeID)
			if a == nil {
				return blockdev.State{}, false
			}
			if disk := a.device(); disk != nil {
				return disk.State(), true
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.rec.Device, true
		},
		lock: func(ctx context.Context, volumeID string) (func(), error) { return m.locks.lock(ctx, volumeID) },
	}
}

// Examine compares the devices in the kernel with attachments and records. With fix it removes devices that nobody knows of, serves
// or uses. Everything else it leaves as it is.
func (m *Manager) Examine(ctx context.Context, fix bool) ([]Finding, error) {
	return m.examiner().examine(ctx, fix)
}

// reconcile is the pass at the start: what is left of earlier processes beside the attachments that are taken over.
func (m *Manager) reconcile() {
	findings, err := m.Examine(m.stopped, true)
	for _, f := range findings {
		klog.InfoS("Found at the start", "object", f.Object, "what", f.What, "removed", f.Fixed, "todo", f.Todo)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		klog.ErrorS(err, "What earlier initiators left could not be looked at")
	}
}

// ExamineHost does what Manager.Examine does while no initiator runs; ErrRunning if one does. Without fix it changes nothing.
func ExamineHost(ctx context.Context, runDir, stateDir string, frontends []blockdev.Frontend, fix bool) (findings []Finding, err error) {
	if fix {
		lock, lockErr := LockDirs(runDir, stateDir)
		if lockErr != nil {
			return nil, lockErr
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	if !fix {
		if busy, err := running(runDir); err != nil || busy {
			return nil, errors.Join(err, ErrRunning)
		}
	}
	uuid, err := readUUID(stateDir)
	if err != nil {
		return nil, err
	}
	e := &examiner{
		frontends: frontends, records: recordsIn(runDir), uuid: uuid, host: thisHost,
		attached: func(string) (blockdev.State, bool) { return blockdev.State{}, false },
		lock:     func(context.Context, string) (func(), error) { return func() {}, nil },
	}
	return e.examine(ctx, fix)
}
