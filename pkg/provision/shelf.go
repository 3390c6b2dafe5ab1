package provision

import (
	"context"
	"errors"
	"fmt"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// lunPage is how many LUNs are asked for at once: a whole shelf.
const lunPage = 255

// ShelfInfo is what a shelf says of itself.
type ShelfInfo struct {
	Number  uint16 // AoE major
	UUID    string
	Segment string
	Version string
	Labels  map[string]string // by which a StorageClass selects it
}

// ShelfCapacity is a shelf's room, in bytes.
type ShelfCapacity struct {
	TotalBytes     int64
	AvailableBytes int64
	MaxLunBytes    int64
	FreeSlots      int
	// Fixed: LUNs have the sizes they have; one of Offers is taken whole.
	Fixed  bool
	Offers []Offer
}

// Offer is a LUN that a fixed shelf has.
type Offer struct {
	Slot    uint8
	Bytes   int64
	Refused string // why it cannot be taken now; empty: it can
	Data    bool   // only for what is on it
}

// Warning is what whoever trusts a LUN with data should know of it.
type Warning struct {
	Reason  string // of the Event: "NotFenced", "NotDurable"
	Message string
}

// Shelf is a shelf that has just said who it is. Every call has a deadline of its own and
// fails with a *ShelfError.
type Shelf struct {
	Info ShelfInfo
	end  *endpoint
}

// CreateLun makes the managed LUN, or finds that it is there. ErrNoSpace, ErrOutOfRange,
// ErrConflict and ErrInvalid are final; after any other error it may exist.
func (s *Shelf) CreateLun(ctx context.Context, id volume.ID, name string, size int64) error {
	lun, err := call(ctx, s, "create LUN "+id.Addr.String(), s.end.client.CreateLun, &shelfv1.CreateLunRequest{
		Id: lunID(id), Name: name, SizeBytes: uint64(size), Access: shelfv1.Access_ACCESS_MANAGED,
	})
	if err != nil {
		return err
	}
	if lun.GetId().GetGeneration() != string(id.Generation) || lun.GetSizeBytes() < uint64(size) {
		return s.fail("create LUN "+id.Addr.String(), fmt.Errorf("answered with generation %q and %d bytes, asked for %s and %d",
			lun.GetId().GetGeneration(), lun.GetSizeBytes(), id.Generation, size))
	}
	return nil
}

// DeleteLun removes the LUN and its data. When it returns nil there is no LUN of this
// identity. ErrInUse while a node is admitted.
func (s *Shelf) DeleteLun(ctx context.Context, id volume.ID) error {
	_, err := call(ctx, s, "delete LUN "+id.Addr.String(), s.end.client.DeleteLun, &shelfv1.DeleteLunRequest{Id: lunID(id)})
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	return err
}

// GrowLun makes the LUN at least size bytes large and returns how large it is. ErrNoSpace, ErrOutOfRange and ErrInvalid mean that it
// is as it was.
func (s *Shelf) GrowLun(ctx context.Context, id volume.ID, size int64) (int64, error) {
	op := "grow LUN " + id.Addr.String()
	lun, err := call(ctx, s, op, s.end.client.GrowLun, &shelfv1.GrowLunRequest{Id: lunID(id), SizeBytes: uint64(size)})
	if err != nil {
		return 0, err
	}
	if lun.GetId().GetGeneration() != string(id.Generation) || lun.GetSizeBytes() < uint64(size) || lun.GetSizeBytes() > volume.MaxSize {
		return 0, s.fail(op, fmt.Errorf("answered with generation %q and %d bytes, asked for %s and %d",
			lun.GetId().GetGeneration(), lun.GetSizeBytes(), id.Generation, size))
	}
	return int64(lun.GetSizeBytes()), nil
}

// Admit lets these MACs, the node's, use the LUN, and says at which MACs the LUN is, if that is known. ErrInUse while another node is
// admitted. Warnings are for people.
func (s *Shelf) Admit(ctx context.Context, id volume.ID, node string, macs []string) (at []string, warnings []Warning, err error) {
	lun, err := call(ctx, s, "admit node "+node+" to "+id.Addr.String(), s.end.client.Admit, &shelfv1.AdmitRequest{
		Id: lunID(id), Admission: &shelfv1.Admission{Node: node, Macs: macs},
	})
	for _, w := range lun.GetWarnings() {
		warnings = append(warnings, Warning{Reason: w.GetReason(), Message: w.GetMessage()})
	}
	return lun.GetMacs(), warnings, err
}

// Expel takes the node off: when it returns nil, or ErrNotFound because the LUN is not
// there, no frame of that node takes effect any more.
func (s *Shelf) Expel(ctx context.Context, id volume.ID, node string) error {
	_, err := call(ctx, s, "expel node "+node+" from "+id.Addr.String(), s.end.client.Expel, &shelfv1.ExpelRequest{Id: lunID(id), Node: node})
	return err
}

// AdmittedNodes returns the nodes that the shelf lets use the LUN; ErrNotFound if there is no such LUN.
func (s *Shelf) AdmittedNodes(ctx context.Context, id volume.ID) ([]string, error) {
	lun, err := call(ctx, s, "get LUN "+id.Addr.String(), s.end.client.GetLun, &shelfv1.GetLunRequest{Id: lunID(id)})
	if err != nil {
		return nil, err
	}
	nodes := make([]string, 0, len(lun.GetAdmitted()))
	for _, a := range lun.GetAdmitted() {
		nodes = append(nodes, a.GetNode())
	}
	return nodes, nil
}

// UsedSlots returns the slots that have a LUN, also those that were made by hand.
func (s *Shelf) UsedSlots(ctx context.Context) ([]uint8, error) {
	var slots []uint8
	token := ""
	for {
		page, err := call(ctx, s, "list LUNs", s.end.client.ListLuns, &shelfv1.ListLunsRequest{PageSize: lunPage, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, lun := range page.GetLuns() {
			if slot := lun.GetId().GetSlot(); slot < uint32(slotsPerShelf) {
				slots = append(slots, uint8(slot))
			}
		}
		if token = page.GetNextPageToken(); token == "" || len(slots) > slotsPerShelf {
			return slots, nil
		}
	}
}

// fail is for answers that make no sense: nothing can be decided on them.
func (s *Shelf) fail(op string, err error) error {
	return &ShelfError{Op: op, Shelf: fmt.Sprintf("shelf %d", s.Info.Number), Address: s.end.address, Err: err}
}

func lunID(id volume.ID) *shelfv1.LunId {
	return &shelfv1.LunId{Slot: uint32(id.Addr.Slot), Generation: string(id.Generation)}
}
