package volume

import (
	"context"
	"slices"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Phase is how far a volume has come. It only ever goes forward.
type Phase string

// The phases of a volume.
const (
	PhasePending  Phase = "Pending"  // intent written, slot not owned: the shelf was never asked
	PhaseCreating Phase = "Creating" // slot owned: the shelf may have been asked
	PhaseReady    Phase = "Ready"    // the shelf has it
	PhaseDeleting Phase = "Deleting" // the shelf may have it no more
)

// Record is a volume's intent and what was done of it.
type Record struct {
	Name       string // of the CSI request
	ID         ID
	SizeBytes  int64 // wanted
	ShelfBytes int64 // what the shelf is known to have made; less than SizeBytes while the volume is made or grows
	Parameters Parameters
	Segment    string
	ShelfUUID  string // the shelf that was chosen; another one with its number is refused
	Claim      string // "namespace/name" or empty

	Phase    Phase
	Message  string // why it is not further, in plain words
	Admitted []Admission

	Created time.Time // set by the store
	Version string    // the store's; UpdateVolume and DeleteVolume refuse an old one
}

// Admission remembers that a node was, or may have been, admitted on the shelf.
type Admission struct {
	Node      string
	MACs      []string // "52:54:00:00:01:02"
	ReadOnly  bool
	Confirmed bool // the shelf answered
	// Frontend that the node was told to use, and why.
	Frontend       string
	FrontendReason string
}

// Volume returns the part of the record that callers see.
func (r *Record) Volume() *Volume {
	v := &Volume{ID: r.ID, Name: r.Name, SizeBytes: r.SizeBytes, Parameters: r.Parameters, Segment: r.Segment}
	if r.ShelfBytes > 0 {
		v.SizeBytes = r.ShelfBytes
	}
	for _, a := range r.Admitted {
		if a.Confirmed {
			v.Nodes = append(v.Nodes, a.Node)
		}
	}
	return v
}

// Admission returns the node's admission, nil if it has none.
func (r *Record) Admission(node string) *Admission {
	i := slices.IndexFunc(r.Admitted, func(a Admission) bool { return a.Node == node })
	if i < 0 {
		return nil
	}
	return &r.Admitted[i]
}

// Slot says who owns an address.
type Slot struct {
	Addr       aoe.Addr
	VolumeName string
	Generation Generation
}

// Node is what a node tells about itself.
type Node struct {
	Name          string
	Segments      []string // values of topology.aoe-csi.io/segment
	Interfaces    []Interface
	Frontends     []Frontend
	Attachments   []Attachment
	InitiatorUUID string
	Software      string // version
}

// Interface is a network interface that the node's initiator uses.
type Interface struct {
	Name string
	MAC  string // "52:54:00:00:01:02"
	MTU  int
	Up   bool
}

// Frontend is a way to make a block device on the node.
type Frontend struct {
	Name      string // "ublk", "nbd"
	Available bool
	Reason    string // why not, or what is known of it
	// LiveResize: its devices can grow while they are in use.
	LiveResize bool
}

// Attachment is a volume that the node has as a device.
type Attachment struct {
	VolumeID       string // the volume's handle
	Device         string // "/dev/nbd0"
	Frontend       string
	FrontendReason string
	State          string // "attaching", "live", "stalled", "failed", "detaching"
	Message        string
	Since          time.Time
	Paths          []Path
}

// Path is a way from the node to the target.
type Path struct {
	Interface string // "eth1", or "local" for the unix socket
	RemoteMAC string
	State     string // "up", "probing", "down"
	Message   string
}

// MACs returns the addresses of the node's interfaces, sorted, each once.
func (n *Node) MACs() []string {
	var macs []string
	for _, i := range n.Interfaces {
		if i.MAC != "" {
			macs = append(macs, i.MAC)
		}
	}
	slices.Sort(macs)
	return slices.Compact(macs)
}

// Nodes holds what nodes tell about themselves. Each node writes its own entry only.
type Nodes interface {
	// GetNode fails with ErrNotFound.
	GetNode(ctx context.Context, name string) (*Node, error)
	ListNodes(ctx context.Context) ([]Node, error)
	// PutNode makes or replaces the entry.
	PutNode(ctx context.Context, n *Node) error
}

// Store keeps intents. Every change is atomic, and durable when the call returns; a call
// that failed may have taken place.
type Store interface {
	Nodes

	// CreateVolume writes a new record and sets its Version and Created; ErrExists if the name has one.
	CreateVolume(ctx context.Context, r *Record) error
	// GetVolume fails with ErrNotFound.
	GetVolume(ctx context.Context, name string) (*Record, error)
	// ListVolumes returns all records in the order of their names.
	ListVolumes(ctx context.Context) ([]Record, error)
	// UpdateVolume replaces the record and its Version; ErrStale if it was changed or removed since it was read.
	UpdateVolume(ctx context.Context, r *Record) error
	// DeleteVolume removes the record; ErrStale if it was changed since it was read. One that is gone is success.
	DeleteVolume(ctx context.Context, r *Record) error

	// ClaimSlot makes the volume the owner; again is success; ErrExists if another owns it.
	ClaimSlot(ctx context.Context, s Slot) error
	// GetSlot fails with ErrNotFound.
	GetSlot(ctx context.Context, addr aoe.Addr) (*Slot, error)
	ListSlots(ctx context.Context) ([]Slot, error)
	// ReleaseSlot frees the slot if this volume owns it, and does nothing otherwise.
	ReleaseSlot(ctx context.Context, s Slot) error
}
