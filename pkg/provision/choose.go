package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// slotsPerShelf is how many slots an AoE shelf can have, 0 to 254.
const slotsPerShelf = int(aoe.MaxSlot) + 1

// slotRefusals is after how many slots that turned out to be taken a shelf is given up:
// then it is not the slots.
const slotRefusals = 16

// exclusions is what one Create has learned not to choose again, and the addresses it
// holds back from the others meanwhile.
type exclusions struct {
	shelves  map[uint16]error
	slots    map[aoe.Addr]bool
	refusals map[uint16]int
	held     []aoe.Addr
	from     *reservations
}

func newExclusions(from *reservations) *exclusions {
	return &exclusions{shelves: map[uint16]error{}, slots: map[aoe.Addr]bool{}, refusals: map[uint16]int{}, from: from}
}

// add excludes what was refused: the slot if another LUN is in it, else the shelf.
func (ex *exclusions) add(addr aoe.Addr, why error) {
	ex.slots[addr] = true
	ex.refusals[addr.Shelf]++
	if !errors.Is(why, volume.ErrConflict) || ex.refusals[addr.Shelf] >= slotRefusals {
		ex.shelves[addr.Shelf] = why
	}
}

func (ex *exclusions) close() { ex.from.release(ex.held) }

// reservations keeps volumes that are made at the same time from choosing the same slot.
// It is a courtesy within one process; what owns a slot is its object in the store.
type reservations struct {
	mu    sync.Mutex
	taken map[aoe.Addr]bool
}

// reserve takes the lowest address of the shelf that used does not report.
func (r *reservations) reserve(shelf uint16, used func(aoe.Addr) bool) (aoe.Addr, bool) {
	for slot := range slotsPerShelf {
		addr := aoe.Addr{Shelf: shelf, Slot: uint8(slot)}
		if !used(addr) && r.take(addr) {
			return addr, true
		}
	}
	return aoe.Addr{}, false
}

// take takes an address, if nobody has it.
func (r *reservations) take(addr aoe.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken == nil {
		r.taken = map[aoe.Addr]bool{}
	}
	if r.taken[addr] {
		return false
	}
	r.taken[addr] = true
	return true
}

func (r *reservations) release(addrs []aoe.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addrs {
		delete(r.taken, a)
	}
}

// verdict collects why shelves were not chosen.
type verdict struct {
	why      []string
	silent   []error // of those that might have been it and did not say
	matched  bool    // one was the kind of shelf asked for
	everFits bool    // and could hold the volume if it were empty, or took it
}

// choose returns, among the shelves where the volume fits, the one with most free space that makes LUNs, or if there is none, those that have
// some of their own: which of these fits is still to be seen.
// ErrUnavailable if one that did not answer might have been it, ErrOutOfRange if no shelf
// could ever hold it, else ErrNoSpace.
func (s *Service) choose(ctx context.Context, p volume.Parameters, segments []string, size int64, ex *exclusions) (*Shelf, *pool, error) {
	survey, err := s.shelves.Survey(ctx)
	if err != nil {
		return nil, nil, err
	}
	var best *Surveyed
	var fixed []Surveyed
	var v verdict
	for i := range survey {
		c := &survey[i]
		switch {
		case c.Known && !p.Selects(c.Number, c.Labels):
		case c.Capacity.Fixed && !p.Names(c.Number, c.Labels):
			v.why = append(v.why, fmt.Sprintf("shelf %d has LUNs of its own, which only a StorageClass that names it, or selects it by labels, takes", c.Number))
		case !v.fits(c, segments, size, ex):
		case c.Capacity.Fixed:
			fixed = append(fixed, *c)
		case best == nil || c.Capacity.AvailableBytes > best.Capacity.AvailableBytes:
			best = c // of equals the lowest number: the survey is in that order
		}
	}
	switch {
	case best != nil:
		return best.Shelf, nil, nil
	}
	for _, refusal := range ex.shelves {
		if errors.Is(refusal, volume.ErrInvalid) {
			return nil, nil, refusal // no room is not what is wrong
		}
	}
	switch {
	case len(fixed) == 0:
	case p.Shelf != nil:
		return nil, &pool{shelves: fixed, named: true}, nil // no other shelf can be it
	default:
		return nil, &pool{shelves: fixed, others: v}, nil
	}
	return nil, nil, v.failure(p, size, s.shelves.known())
}

// failure says that no shelf was chosen.
func (v *verdict) failure(p volume.Parameters, size int64, known string) error {
	what, unknown := "no shelf takes", "no shelf is known"
	switch {
	case p.Shelf != nil:
		what = fmt.Sprintf("shelf %d does not take", *p.Shelf)
		unknown = fmt.Sprintf("shelf %d is not known", *p.Shelf)
	case p.ShelfSelector != "":
		what = fmt.Sprintf("no shelf with %s takes", p.ShelfSelector)
		unknown = fmt.Sprintf("no shelf with %s is known", p.ShelfSelector)
	}
	if len(v.why) == 0 {
		return fmt.Errorf("%w: %s; known: %s", volume.ErrUnavailable, unknown, known)
	}
	return &noShelfError{text: fmt.Sprintf("%s %s: %s", what, humanSize(size), strings.Join(v.why, "; ")), sentinel: v.sentinel()}
}

// noShelfError says for every shelf why it was not chosen, and (errors.Is) what that
// means. Its text has the sentinels of the shelves in it already.
type noShelfError struct {
	text     string
	sentinel error
}

func (e *noShelfError) Error() string { return e.text }

// Unwrap makes errors.Is find the sentinel.
func (e *noShelfError) Unwrap() error { return e.sentinel }

func (v *verdict) sentinel() error {
	switch {
	case len(v.silent) > 0:
		return gravest(v.silent)
	case v.matched && !v.everFits:
		return volume.ErrOutOfRange
	}
	return volume.ErrNoSpace
}

// gravest says what silent shelves mean: a retry as long as one of them may come back,
// else what somebody has to put right.
func gravest(silent []error) error {
	all := errors.Join(silent...)
	for _, sentinel := range []error{volume.ErrUnavailable, volume.ErrUnauthorized, volume.ErrPrecondition} {
		if errors.Is(all, sentinel) {
			return sentinel
		}
	}
	return volume.ErrUnavailable
}

// fits says whether the volume can be made on the shelf now, and notes why not.
func (v *verdict) fits(c *Surveyed, segments []string, size int64, ex *exclusions) bool {
	if c.Err != nil {
		v.silent = append(v.silent, c.Err)
		v.why = append(v.why, c.Err.Error())
		return false
	}
	if reason := elsewhere(c, segments); reason != "" {
		v.why = append(v.why, reason)
		return false
	}
	v.matched = true
	v.everFits = v.everFits || !c.Capacity.Fixed && size <= c.Capacity.TotalBytes
	reason := full(c, size, ex)
	if reason != "" {
		v.why = append(v.why, reason)
		v.everFits = v.everFits || c.Capacity.Fixed // one of its LUNs might have been it
	}
	return reason == ""
}

// elsewhere says why a shelf is on none of the segments asked for; empty: it is.
func elsewhere(c *Surveyed, segments []string) string {
	if len(segments) == 0 || slices.Contains(segments, c.Shelf.Info.Segment) {
		return ""
	}
	return fmt.Sprintf("shelf %d is on segment %q, not on %s", c.Number, c.Shelf.Info.Segment, strings.Join(segments, " or "))
}

// full says why a volume of this size does not fit on the shelf now; empty: it fits.
func full(c *Surveyed, size int64, ex *exclusions) string {
	room := c.Capacity
	switch refusal := ex.shelves[c.Number]; {
	case refusal != nil:
		return refusal.Error()
	case room.Fixed:
		return "" // which of its LUNs fits is chosen later
	case size > room.TotalBytes:
		return fmt.Sprintf("shelf %d has %s in all", c.Number, humanSize(room.TotalBytes))
	case size > room.MaxLunBytes:
		return fmt.Sprintf("shelf %d makes volumes of at most %s now", c.Number, humanSize(room.MaxLunBytes))
	case size > room.AvailableBytes:
		return fmt.Sprintf("shelf %d has %s free", c.Number, humanSize(room.AvailableBytes))
	case room.FreeSlots == 0:
		return fmt.Sprintf("shelf %d has no free slot", c.Number)
	}
	return ""
}

// chooseSlot returns an address of the shelf that neither the store nor the shelf knows
// an owner of. It stays reserved until ex is closed.
func (s *Service) chooseSlot(ctx context.Context, shelf *Shelf, ex *exclusions) (aoe.Addr, error) {
	slots, err := s.store.ListSlots(ctx)
	if err != nil {
		return aoe.Addr{}, err
	}
	onShelf, err := shelf.UsedSlots(ctx)
	if err != nil {
		return aoe.Addr{}, err
	}
	used := make(map[aoe.Addr]bool, len(slots)+len(onShelf))
	for _, slot := range slots {
		used[slot.Addr] = true
	}
	for _, slot := range onShelf {
		used[aoe.Addr{Shelf: shelf.Info.Number, Slot: slot}] = true
	}
	addr, ok := s.slots.reserve(shelf.Info.Number, func(a aoe.Addr) bool { return used[a] || ex.slots[a] })
	if !ok {
		return aoe.Addr{}, fmt.Errorf("%w: shelf %d has no free slot", volume.ErrNoSpace, shelf.Info.Number)
	}
	ex.held = append(ex.held, addr)
	return addr, nil
}

// humanSize writes a size the way people say it, exactly.
func humanSize(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for i < len(units)-1 && bytes != 0 && bytes%1024 == 0 {
		bytes, i = bytes/1024, i+1
	}
	return fmt.Sprintf("%d %s", bytes, units[i])
}
