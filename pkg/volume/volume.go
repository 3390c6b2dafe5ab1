package volume

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// SizeUnit is what sizes are multiples of, in bytes: a page, so that no file system ever
// sees a tail that it cannot use.
const SizeUnit = 4096

// DefaultSize is the size of a volume when nobody asked for one, in bytes.
const DefaultSize = 1 << 30

// MaxSize is the largest size that ATA can address, in bytes: 48 bits of 512-byte sectors.
const MaxSize = 1 << 57

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

// Size chooses the size in bytes: what is required rounded up to SizeUnit, never above the
// limit. The error is ErrInvalid for sizes that mean nothing, ErrOutOfRange for those that
// cannot be.
func (r CreateRequest) Size() (int64, error) {
	switch {
	case r.RequiredBytes < 0 || r.LimitBytes < 0:
		return 0, fmt.Errorf("%w: negative size (required %d, limit %d)", ErrInvalid, r.RequiredBytes, r.LimitBytes)
	case r.LimitBytes > 0 && r.RequiredBytes > r.LimitBytes:
		return 0, fmt.Errorf("%w: required size %d is above the limit %d", ErrInvalid, r.RequiredBytes, r.LimitBytes)
	case r.RequiredBytes > MaxSize:
		return 0, fmt.Errorf("%w: %d bytes is more than an ATA disk can have (%d)", ErrOutOfRange, r.RequiredBytes, int64(MaxSize))
	}
	size := r.RequiredBytes
	if size == 0 {
		size = DefaultSize
		if r.LimitBytes > 0 && r.LimitBytes < size {
			size = r.LimitBytes / SizeUnit * SizeUnit
		}
	}
	size = (size + SizeUnit - 1) / SizeUnit * SizeUnit
	if size == 0 || r.LimitBytes > 0 && size > r.LimitBytes {
		return 0, fmt.Errorf("%w: sizes are multiples of %d bytes, none lies between %d and %d",
			ErrOutOfRange, SizeUnit, r.RequiredBytes, r.LimitBytes)
	}
	return size, nil
}

// ExpandSize is the size in bytes that a volume of current bytes gets when at least required and at most limit (0: no limit) bytes are
// asked for: never less than it has. The error is ErrInvalid or ErrOutOfRange.
func ExpandSize(current, required, limit int64) (int64, error) {
	if required == 0 && limit > 0 { // only not too large
		required = min(current, limit)
	}
	if required == 0 {
		return 0, fmt.Errorf("%w: no size asked for", ErrInvalid)
	}
	size, err := CreateRequest{RequiredBytes: required, LimitBytes: limit}.Size()
	if err != nil {
		return 0, err
	}
	if limit > 0 && current > limit {
		return 0, fmt.Errorf("%w: it has %d bytes already, the limit is %d", ErrOutOfRange, current, limit)
	}
	return max(size, current), nil
}

// Parameters are those of a StorageClass, checked.
type Parameters struct {
	Shelf *uint16 // nil: any
	// ShelfSelector chooses among shelves by their labels, as ParseShelfSelector returns it; empty: it does not.
	ShelfSelector string
	FSType        string        // "ext4", "xfs"; empty: ext4
	MkfsOptions   string        // handed to mkfs, split at spaces
	Frontend      string        // "auto", "ublk", "nbd"
	DeadTime      time.Duration // 0: wait for ever
	// OnlineExpansion: the volume's device must be able to grow while it is in use.
	OnlineExpansion bool
}

// ParseShelfSelector checks a selector in the syntax of Kubernetes ("tier=ssd,rack in (a, b)") and returns it without blanks and in
// order. The error is ErrInvalid.
func ParseShelfSelector(text string) (string, error) {
	selector, err := labels.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%w: shelf selector %q: %w", ErrInvalid, text, err)
	}
	return selector.String(), nil
}

// Names says whether it asks for this very shelf, by number or by a label that it has: only then LUNs that were there before us are
// taken. That a label is not there, or has another value, names no shelf.
func (p Parameters) Names(number uint16, has map[string]string) bool {
	if p.Shelf != nil {
		return *p.Shelf == number
	}
	selector, err := labels.Parse(p.ShelfSelector)
	if err != nil || !selector.Matches(labels.Set(has)) {
		return false
	}
	wanted, _ := selector.Requirements()
	return slices.ContainsFunc(wanted, func(r labels.Requirement) bool {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In, selection.Exists, selection.GreaterThan, selection.LessThan:
			return true
		}
		return false
	})
}

// Selects says whether a shelf with this number and these labels is one of those asked for.
func (p Parameters) Selects(number uint16, has map[string]string) bool {
	if p.Shelf != nil && *p.Shelf != number {
		return false
	}
	selector, err := labels.Parse(p.ShelfSelector)
	return err == nil && selector.Matches(labels.Set(has))
}

// Equal says whether two sets of parameters ask for the same.
func (p Parameters) Equal(q Parameters) bool {
	if (p.Shelf == nil) != (q.Shelf == nil) || p.Shelf != nil && *p.Shelf != *q.Shelf {
		return false
	}
	p.Shelf, q.Shelf = nil, nil
	return p == q
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
	Frontend   string // "auto": the node's initiator chooses
	// FrontendReason is why this one, for people.
	FrontendReason string
	DeadTime       time.Duration
	ReadOnly       bool
	// MACs at which the shelf says that the target is; empty: the node looks for it.
	MACs []string
}

// CapacityRequest asks what could be made with these parameters in these segments.
type CapacityRequest struct {
	Parameters Parameters
	Segments   []string // empty: all
}

// Capacity is what new volumes could take, without over-commitment.
type Capacity struct {
	AvailableBytes int64 // of all shelves that fit
	MaxVolumeBytes int64 // the largest single volume
}
