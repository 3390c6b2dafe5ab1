package volume

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// GenerationLen is the length of a Generation in characters.
const GenerationLen = 16

// alphabet is RFC 4648's base32 in lower case, so that a generation can be part of a
// Kubernetes name.
const alphabet = "abcdefghijklmnopqrstuvwxyz234567"

var encoding = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// Generation is the identity of a volume's data: 80 random bits in 16 characters of
// lower-case base32. It is the LUN's ATA serial number and in its config string, so a
// slot that was used again is never taken for the old volume.
type Generation string

// NewGeneration returns a generation that nobody has.
func NewGeneration() Generation {
	var b [GenerationLen * 5 / 8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return Generation(encoding.EncodeToString(b[:]))
}

// ParseGeneration checks s. The error is ErrInvalid.
func ParseGeneration(s string) (Generation, error) {
	if len(s) != GenerationLen {
		return "", fmt.Errorf("%w: generation %q has %d characters, not %d", ErrInvalid, s, len(s), GenerationLen)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(alphabet, r) }); i >= 0 {
		return "", fmt.Errorf("%w: generation %q: character %d is not lower-case base32", ErrInvalid, s, i)
	}
	return Generation(s), nil
}

// ID is a volume's handle. The address says where the volume was made and is a hint; the
// generation is its identity.
type ID struct {
	Addr       aoe.Addr
	Generation Generation
}

// String returns the handle, "e7.3-abcdefghijklmnop".
func (id ID) String() string { return id.Addr.String() + "-" + string(id.Generation) }

// ParseID reads what String writes, and nothing else. The error is ErrInvalid.
func ParseID(s string) (ID, error) {
	addr, generation, found := strings.Cut(s, "-")
	if !found {
		return ID{}, fmt.Errorf("%w: volume handle %q is not e<shelf>.<slot>-<generation>", ErrInvalid, s)
	}
	a, err := aoe.ParseAddr(addr)
	if err != nil {
		return ID{}, fmt.Errorf("%w: volume handle %q: %w", ErrInvalid, s, err)
	}
	g, err := ParseGeneration(generation)
	if err != nil {
		return ID{}, fmt.Errorf("volume handle %q: %w", s, err)
	}
	return ID{Addr: a, Generation: g}, nil
}
