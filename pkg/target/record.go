package target

import (
	"fmt"
	"slices"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Format versions of what is stored. A newer one is refused: it may mean things this code would destroy.
const (
	shelfFormat = 1
	lunFormat   = 1
)

// shelfRecord is what a directory knows about itself.
type shelfRecord struct {
	Format int    `json:"format"`
	Shelf  uint16 `json:"shelf"`
	UUID   string `json:"uuid"`
	// BootID is the kernel's boot in which LUNs were last open; Clean says that everything was durable when they were closed.
	BootID string `json:"bootID"`
	Clean  bool   `json:"clean"`
}

// Access says who may use a LUN and how.
type Access uint8

const (
	// ManagedAccess serves admitted senders in sessions; their list is closed when it is empty.
	ManagedAccess Access = iota
	// OpenAccess serves everyone, also without a session, and obeys config strings, masks and reservations.
	OpenAccess
)

// String is the name used in metadata and on the command line.
func (a Access) String() string {
	if a == OpenAccess {
		return "open"
	}
	return "managed"
}

// Admission lets a node use a LUN from these addresses.
type Admission struct {
	Node string    `json:"node"`
	MACs []aoe.MAC `json:"macs"`
}

// lunState is where a LUN is in its life.
type lunState string

const (
	lunReady lunState = "ready"
	// lunDeleting: its file may be gone already; start-up finishes the job.
	lunDeleting lunState = "deleting"
)

// initiatorRecord remembers the newest OPEN of an initiator, so that a late duplicate of an older one is known as stale.
type initiatorRecord struct {
	UUID        aoe.UUID `json:"uuid"`
	Node        string   `json:"node"`
	Incarnation uint64   `json:"incarnation"`
}

// lunRecord is a LUN as stored, keyed by UUID.
type lunRecord struct {
	Format     int         `json:"format"`
	UUID       string      `json:"uuid"`
	Slot       uint8       `json:"slot"`
	Generation string      `json:"generation"`
	Name       string      `json:"name,omitempty"`
	SizeBytes  int64       `json:"sizeBytes"`
	Access     Access      `json:"access"`
	State      lunState    `json:"state"`
	Created    time.Time   `json:"created"`
	Admitted   []Admission `json:"admitted,omitempty"`
	// Admission counts the times that a node was let in; never 0 again after the first.
	Admission uint32 `json:"admission,omitempty"`
	// CacheEpoch changes when acknowledged data may have been lost.
	CacheEpoch uint64 `json:"cacheEpoch"`
	// LastEpoch is the session epoch issued last; UsedEpochs has a bit for each that was live, or free for less than
	// the lifetime of a duplicate, when the record was written.
	LastEpoch  uint8             `json:"lastEpoch"`
	UsedEpochs uint64            `json:"usedEpochs"`
	Initiators []initiatorRecord `json:"initiators,omitempty"`
	// In-band settings of open LUNs.
	Config   []byte    `json:"config,omitempty"`
	Mask     []aoe.MAC `json:"mask,omitempty"`
	Reserved []aoe.MAC `json:"reserved,omitempty"`
}

// clone is deep enough that a change of the copy's lists never shows in the original.
func (r *lunRecord) clone() *lunRecord {
	c := *r
	c.Admitted = slices.Clone(r.Admitted)
	c.Initiators = slices.Clone(r.Initiators)
	c.Config = slices.Clone(r.Config)
	c.Mask = slices.Clone(r.Mask)
	c.Reserved = slices.Clone(r.Reserved)
	return &c
}

// admission is the index of a node's admission, -1 if it has none.
func (r *lunRecord) admission(node string) int {
	return slices.IndexFunc(r.Admitted, func(a Admission) bool { return a.Node == node })
}

// incarnation is the newest of an initiator, 0 if it never opened.
func (r *lunRecord) incarnation(uuid aoe.UUID) uint64 {
	for i := range r.Initiators {
		if r.Initiators[i].UUID == uuid {
			return r.Initiators[i].Incarnation
		}
	}
	return 0
}

// identity is the config string that names the LUN.
func identity(generation string) []byte {
	return fmt.Appendf(nil, "aoe-csi:%s", generation)
}
