package aoe

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the address of everybody on the segment.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads six pairs of hexadecimal digits with colons between them.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 17 {
		return MAC{}, fmt.Errorf("parse MAC %q: want six pairs of digits with colons", s)
	}
	for i := range m {
		if i > 0 && s[3*i-1] != ':' {
			return MAC{}, fmt.Errorf("parse MAC %q: want six pairs of digits with colons", s)
		}
		if _, err := hex.Decode(m[i:i+1], []byte(s[3*i:3*i+2])); err != nil {
			return MAC{}, fmt.Errorf("parse MAC %q: %w", s, err)
		}
	}
	return m, nil
}

// String is the usual form, 02:00:00:00:00:07.
func (m MAC) String() string {
	b := make([]byte, 0, 17)
	for i, octet := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{octet})
	}
	return string(b)
}

// IsMulticast says whether m addresses a group; a station never has such an address. Broadcast is one.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// Wildcards of an address, and the largest values a target can have itself.
const (
	AnyShelf uint16 = 0xffff
	AnySlot  uint8  = 0xff
	MaxShelf uint16 = 0xfffe
	MaxSlot  uint8  = 0xfe
)

// Addr is a target's address, shelf.slot (the standard's major and minor).
type Addr struct {
	Shelf uint16
	Slot  uint8
}

// Any is the address that every target answers to.
var Any = Addr{AnyShelf, AnySlot}

// ParseAddr reads the canonical form, e7.3: decimal, no sign, no leading zero. Wildcards are no target's address and
// are refused.
func ParseAddr(s string) (Addr, error) {
	rest, ok := strings.CutPrefix(s, "e")
	shelf, slot, dot := strings.Cut(rest, ".")
	if !ok || !dot {
		return Addr{}, fmt.Errorf("parse AoE address %q: want e<shelf>.<slot>", s)
	}
	major, err := parsePart(shelf, uint64(MaxShelf))
	if err != nil {
		return Addr{}, fmt.Errorf("parse AoE address %q: shelf: %w", s, err)
	}
	minor, err := parsePart(slot, uint64(MaxSlot))
	if err != nil {
		return Addr{}, fmt.Errorf("parse AoE address %q: slot: %w", s, err)
	}
	return Addr{Shelf: uint16(major), Slot: uint8(minor)}, nil
}

func parsePart(s string, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil || strconv.FormatUint(n, 10) != s:
		return 0, fmt.Errorf("%q is not a decimal number in its shortest form", s)
	case n > most:
		return 0, fmt.Errorf("%d is above %d", n, most)
	}
	return n, nil
}

// String is the canonical form, e7.3; a wildcard is a star.
func (a Addr) String() string {
	shelf, slot := "*", "*"
	if a.Shelf != AnyShelf {
		shelf = strconv.FormatUint(uint64(a.Shelf), 10)
	}
	if a.Slot != AnySlot {
		slot = strconv.FormatUint(uint64(a.Slot), 10)
	}
	return "e" + shelf + "." + slot
}

// Matches says whether a request to a is for the target at own: each part may be wild on its own.
func (a Addr) Matches(own Addr) bool {
	return (a.Shelf == own.Shelf || a.Shelf == AnyShelf) && (a.Slot == own.Slot || a.Slot == AnySlot)
}

// IsWild says whether a may match more than one target.
func (a Addr) IsWild() bool { return a.Shelf == AnyShelf || a.Slot == AnySlot }
