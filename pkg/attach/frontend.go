package attach

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// FrontendAuto has the initiator choose.
const FrontendAuto = "auto"

// frontendNames are all that a request can name, whether this version has them or not.
var frontendNames = []string{FrontendAuto, "nbd", "ublk"}

// FrontendStatus says whether a front end works here.
type FrontendStatus struct {
	Name      string
	Available bool
	Reason    string // why not
	// LiveResize: its devices can grow while they are in use.
	LiveResize bool
}

// Frontends probes what there is.
func (m *Manager) Frontends(ctx context.Context) []FrontendStatus {
	var all []FrontendStatus
	for _, f := range m.cfg.Frontends {
		s := FrontendStatus{Name: f.Name(), Available: true}
		if err := f.Probe(ctx); err != nil {
			s.Available, s.Reason = false, err.Error()
		} else if features, err := f.Features(ctx); err != nil {
			s.Reason = err.Error()
		} else {
			s.LiveResize = features.LiveResize
		}
		all = append(all, s)
	}
	return all
}

// choose finds a front end that works, and says why this one.
func (m *Manager) choose(ctx context.Context, opts Options) (blockdev.Frontend, string, error) {
	asked, reason := opts.Frontend, cmp.Or(opts.FrontendReason, "asked for")
	var why []string
	for i, f := range m.cfg.Frontends {
		if asked != FrontendAuto && asked != f.Name() {
			continue
		}
		err := f.Probe(ctx)
		switch {
		case err != nil:
			why = append(why, err.Error())
		case asked != FrontendAuto:
			return f, reason, nil
		case len(m.cfg.Frontends) == 1:
			return f, "the only one of this version", nil
		case i == 0:
			return f, "preferred, and works here", nil
		default:
			return f, "works here; " + strings.Join(why, "; "), nil
		}
	}
	if len(why) == 0 {
		return nil, "", fmt.Errorf("%w: this version has no front end %q", ErrNoFrontend, asked)
	}
	return nil, "", fmt.Errorf("%w: %s", ErrNoFrontend, strings.Join(why, "; "))
}

// frontend finds a front end by name, for a device of an earlier process.
func (m *Manager) frontend(name string) blockdev.Frontend {
	i := slices.IndexFunc(m.cfg.Frontends, func(f blockdev.Frontend) bool { return f.Name() == name })
	if i < 0 {
		return nil
	}
	return m.cfg.Frontends[i]
}

// deviceID is what the kernel keeps of whose a device is, and what: "aoe-csi:INITIATOR:VOLUME@GENERATION". One initiator at a
// time has the UUID, so a device with it is served by this process or by nobody.
func deviceID(initiatorUUID string, opts Options) string {
	return blockdev.Mark + initiatorUUID + ":" + opts.VolumeID + "@" + opts.Generation
}

// deviceParams describes the device to make for a target.
func deviceParams(initiatorUUID string, opts Options, info initiator.Info) blockdev.Params {
	p := blockdev.Params{
		ID:            deviceID(initiatorUUID, opts),
		SizeBytes:     info.Sectors * sectorBytes,
		LogicalBlock:  sectorBytes,
		PhysicalBlock: max(info.PhysicalBlock, sectorBytes),
		ReadOnly:      opts.ReadOnly,
		Flush:         info.Flush,
		FUA:           info.Flush && info.FUA,
		Trim:          info.Trim && !opts.ReadOnly,
		WriteZeroes:   info.Trim && info.TrimZeroes && info.Session && !opts.ReadOnly,
		Rotational:    info.Rotational,
		DeadTimeout:   deviceDeadTime,
	}
	if opts.DeadTime > 0 {
		p.DeadTimeout = max(opts.DeadTime.Round(time.Second), minDeviceDeadTime)
	}
	return p
}
