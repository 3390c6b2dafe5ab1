package provision

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// chooseOffer returns the smallest free LUN of a fixed shelf that holds size bytes and has at most limit (0: no limit), and its size. It
// stays reserved until ex is closed. The error says of each LUN why not: ErrOutOfRange if none could ever be it, else ErrNoSpace.
func (s *Service) chooseOffer(ctx context.Context, c *Surveyed, size, limit int64, ex *exclusions) (aoe.Addr, int64, error) {
	slots, err := s.store.ListSlots(ctx)
	if err != nil {
		return aoe.Addr{}, 0, err
	}
	owners := make(map[aoe.Addr]string, len(slots))
	for _, slot := range slots {
		owners[slot.Addr] = slot.VolumeName
	}
	offers := slices.Clone(c.Capacity.Offers)
	slices.SortFunc(offers, func(a, b Offer) int { return cmp.Or(cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Slot, b.Slot)) })
	var why []string
	everFits := false
	for _, o := range offers {
		addr := aoe.Addr{Shelf: c.Number, Slot: o.Slot}
		reason := unfit(o, size, limit)
		everFits = everFits || reason == ""
		switch owner := owners[addr]; {
		case reason != "":
		case owner != "":
			reason = "belongs to volume " + owner // also when the target forgot it
		case o.Refused != "":
			reason = o.Refused
		case ex.slots[addr]:
			reason = "was taken or refused just now"
		case !s.slots.take(addr):
			reason = "is being taken"
		default:
			ex.held = append(ex.held, addr)
			return addr, o.Bytes, nil
		}
		why = append(why, addr.String()+" "+reason)
	}
	sentinel := volume.ErrNoSpace
	if !everFits {
		sentinel = volume.ErrOutOfRange
	}
	if len(why) == 0 {
		why = []string{"none of its LUNs answers"}
		sentinel = volume.ErrUnavailable
	}
	return aoe.Addr{}, 0, &noShelfError{
		text:     fmt.Sprintf("shelf %d has no LUN for %s: %s", c.Number, humanSize(size), strings.Join(why, "; ")),
		sentinel: sentinel,
	}
}

// unfit says why a LUN's size is wrong; empty: it is not.
func unfit(o Offer, size, limit int64) string {
	switch {
	case o.Bytes < size:
		return "has " + humanSize(o.Bytes) + " only"
	case limit > 0 && o.Bytes > limit:
		return "has " + humanSize(o.Bytes) + ", more than the limit of " + humanSize(limit)
	}
	return ""
}
