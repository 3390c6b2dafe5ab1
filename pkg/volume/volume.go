package volume

import (
	"errors"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Errors that decide the answer; pkg/driver maps each to one gRPC code.
var (
	ErrInvalid      = errors.New("invalid argument")           // INVALID_ARGUMENT
	ErrNotFound     = errors.New("not found")                  // NOT_FOUND
	ErrConflict     = errors.New("exists and differs")         // ALREADY_EXISTS
	ErrOutOfRange   = errors.New("out of range")               // OUT_OF_RANGE
	ErrNoSpace      = errors.New("no shelf has room")          // RESOURCE_EXHAUSTED
	ErrUnavailable  = errors.New("shelf does not answer")      // UNAVAILABLE
	ErrUnauthorized = errors.New("shelf refused our identity") // UNAUTHENTICATED
	ErrInUse        = errors.New("volume is in use")           // FAILED_PRECONDITION
	ErrPending      = errors.New("operation in progress")      // ABORTED
)

// CreateRequest asks for a volume; Name makes it idempotent.
type CreateRequest struct {
	Name          string
	RequiredBytes int64 // at least; 0: 1 GiB unless LimitBytes is smaller
	LimitBytes    int64 // at most; 0: no limit
	Parameters    Parameters
	Segments      []string // acceptable values of topology.aoe-csi.io/segment; empty: all
	// Claim is who asked ("namespace/name"), for events and people; may be empty.
	Claim string
}

// Parameters are those of a StorageClass, checked.
type Parameters struct {
	Shelf       *uint16       // nil: the one with most room
	FSType      string        // "ext4", "xfs"; empty: ext4
	MkfsOptions string        // handed to mkfs, split at spaces
	Frontend    string        // "auto", "ublk", "nbd"
	DeadTime    time.Duration // 0: wait for ever
}

// Volume is what was made.
type Volume struct {
	ID         ID
	Name       string
	SizeBytes  int64
	Parameters Parameters
	Segment    string
	Nodes      []string // admitted now
}

// Publication is what a node needs to attach a volume; it travels as CSI's publish context.
type Publication struct {
	Target     aoe.Addr
	Generation Generation
	Frontend   string
	DeadTime   time.Duration
	ReadOnly   bool
}
