package initiator

import (
	"strconv"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Info is what the target said about itself.
type Info struct {
	Addr    aoe.Addr
	Sectors uint64 // capacity, of 512 bytes
	Serial  string
	Model   string
	// Firmware is the ATA firmware revision.
	Firmware string
	// PhysicalBlock is the disk's own block in bytes.
	PhysicalBlock uint32
	Rotational    bool
	// Flush: a flush makes data durable, as far as the target can be believed (vblade cannot).
	Flush bool
	FUA   bool
	Trim  bool
	// TrimZeroes: the target says that trimmed sectors read as zeroes, all of them.
	TrimZeroes bool
	// Session: OPEN is in force; false for a foreign target.
	Session bool
	// ConfigString as the target has it.
	ConfigString string
}

// Phase is what a device is doing.
type Phase uint8

// The phases of a device.
const (
	// PhaseAttaching: not yet identified and opened.
	PhaseAttaching Phase = iota
	// PhaseLive: requests flow.
	PhaseLive
	// PhaseStalled: no path answers; requests wait.
	PhaseStalled
	// PhaseFailed: requests fail, as State.Err says; the device lives on when the target is back.
	PhaseFailed
	// PhaseClosed: being detached, or detached.
	PhaseClosed
)

// String is the phase as the API shows it.
func (p Phase) String() string {
	switch p {
	case PhaseAttaching:
		return "attaching"
	case PhaseLive:
		return "live"
	case PhaseStalled:
		return "stalled"
	case PhaseFailed:
		return "failed"
	case PhaseClosed:
		return "detaching"
	}
	return "phase " + strconv.Itoa(int(p))
}

// State is a device's condition, and what has to be remembered to attach it again after a restart.
type State struct {
	Phase Phase
	// Err says why, in PhaseStalled, PhaseFailed or while attaching; may be nil.
	Err   error
	Since time.Time // of the phase
	// Incarnation of the newest OPEN; the next attachment must use a greater one.
	Incarnation uint64
	// CacheEpoch of the target when the session was opened last; 0 without a session.
	CacheEpoch uint64
	// Admission is which one of this node's the attachment is of; 0 if the target has not told.
	Admission uint32
	// Lost: acknowledged writes may be gone: every flush, write and trim fails (latched).
	Lost bool
}

// PathState is a path's condition.
type PathState uint8

// The conditions of a path.
const (
	PathProbing PathState = iota
	PathUp
	PathDown
)

// String is the condition as the API shows it.
func (s PathState) String() string {
	switch s {
	case PathProbing:
		return "probing"
	case PathUp:
		return "up"
	case PathDown:
		return "down"
	}
	return "path state " + strconv.Itoa(int(s))
}

// PathInfo describes one way to the target.
type PathInfo struct {
	Interface  string // "local" for the unix socket
	MAC        aoe.MAC
	State      PathState
	MaxSectors int           // in a frame
	Window     int           // frames
	RTT        time.Duration // smoothed; 0: not measured
	Timeout    time.Duration // after which a frame is sent again
	Message    string        // why it is not up
}

// Stats are counters since the attachment.
type Stats struct {
	Reads, Writes, Flushes, Trims uint64 // requests done without an error
	ReadBytes, WriteBytes         uint64
	Errors                        uint64 // requests that failed
	Retransmits                   uint64
	FramesSent, FramesReceived    uint64
	// Rejected are received frames that answered nothing: late, duplicated, forged or garbled.
	Rejected uint64
	// Held are writes that had to wait for a late copy of an older one to die out.
	Held        uint64
	Outstanding int // requests
	PoolFrames  int
	PoolCeiling int
	PoolGrown   uint64
	// PoolWaits is how often a request that might be sent had no frame, PoolCapped how often for the ceiling.
	PoolWaits, PoolCapped uint64
}
