package provision

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// pool is the fixed shelves that a volume may be on.
type pool struct {
	shelves []Surveyed
	named   bool    // by number: no shelf that is not known now can belong to it
	others  verdict // on shelves that were asked for, too, and are not in it
}

// placed is an offer and the shelf that makes it.
type placed struct {
	Offer
	shelf *Shelf
}

func (o placed) addr() aoe.Addr { return aoe.Addr{Shelf: o.shelf.Info.Number, Slot: o.Slot} }

// offers returns those of all shelves, the smallest first.
func (p *pool) offers() []placed {
	var all []placed
	for _, c := range p.shelves {
		for _, o := range c.Capacity.Offers {
			all = append(all, placed{o, c.Shelf})
		}
	}
	slices.SortFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.shelf.Info.Number, b.shelf.Info.Number), cmp.Compare(a.Slot, b.Slot))
	})
	return all
}

// chooseOffer returns the smallest free LUN of a pool of fixed shelves that holds size bytes and has at most limit (0: no limit), its
// shelf and its size. It stays reserved until ex is closed. The error says of each LUN why not: ErrOutOfRange if none of a shelf asked for by number could ever be it,
// else ErrNoSpace, also while a LUN does not answer; while a shelf is silent, what that means.
func (s *Service) chooseOffer(ctx context.Context, p *pool, size, limit int64, ex *exclusions) (*Shelf, aoe.Addr, int64, error) {
	slots, err := s.store.ListSlots(ctx)
	if err != nil {
		return nil, aoe.Addr{}, 0, err
	}
	owners := make(map[aoe.Addr]string, len(slots))
	for _, slot := range slots {
		owners[slot.Addr] = slot.VolumeName
	}
	why, everFits := p.others.why, p.others.everFits
	for _, o := range p.offers() {
		addr, reason := o.addr(), unfit(o.Offer, size, limit)
		everFits = everFits || reason == "" || o.Bytes == 0 // how large it is, is not known
		switch owner := owners[addr]; {
		case owner != "":
			reason = "belongs to volume " + owner // also when the target forgot it
		case o.Bytes == 0:
			reason = cmp.Or(strings.TrimPrefix(o.Refused, addr.String()+" "), "has not said how large it is")
		case reason != "":
		case o.Refused != "":
			reason = o.Refused
		case ex.slots[addr]:
			reason = "was taken or refused just now"
		case !s.slots.take(addr):
			reason = "is being taken"
		default:
			ex.held = append(ex.held, addr)
			return o.shelf, addr, o.Bytes, nil
		}
		why = append(why, addr.String()+" "+reason)
	}
	sentinel := volume.ErrNoSpace
	if !everFits && p.named {
		sentinel = volume.ErrOutOfRange
	}
	if len(why) == 0 {
		why = []string{"none of its LUNs answers"}
		sentinel = volume.ErrUnavailable
	}
	if len(p.others.silent) > 0 {
		sentinel = gravest(p.others.silent)
	}
	return nil, aoe.Addr{}, 0, &noShelfError{
		text:     fmt.Sprintf("%s has no LUN for %s: %s", p, humanSize(size), strings.Join(why, "; ")),
		sentinel: sentinel,
	}
}

// String lists the shelves.
func (p *pool) String() string {
	if len(p.shelves) == 1 {
		return fmt.Sprintf("shelf %d", p.shelves[0].Number)
	}
	numbers := make([]string, len(p.shelves))
	for i, c := range p.shelves {
		numbers[i] = strconv.Itoa(int(c.Number))
	}
	return "the pool of shelves " + strings.Join(numbers, ", ")
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
