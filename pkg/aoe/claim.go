package aoe

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// GenerationLen is the length of a volume's generation in characters.
const GenerationLen = len(Generation{})

// claimPrefix begins the config string of a foreign target that a volume owns: "aoe-csi/1 <generation> <owner>[ scrubbed=<sectors>]".
const claimPrefix = "aoe-csi/1 "

// scrubbedMark begins how far the data of a volume that goes are overwritten.
const scrubbedMark = " scrubbed="

// Claim is what the config string of a foreign target says when a volume owns it. Its serial number cannot be set.
type Claim struct {
	Generation string
	Owner      string // for people: "namespace/claim"
	// Scrubbed is how many sectors were overwritten since the volume was deleted.
	Scrubbed uint64
}

// String is the config string.
func (c Claim) String() string {
	owner := strings.Join(strings.Fields(c.Owner), "_")
	if owner == "" {
		owner = "-"
	}
	text := claimPrefix + c.Generation + " " + owner
	if c.Scrubbed > 0 {
		text += scrubbedMark + strconv.FormatUint(c.Scrubbed, 10)
	}
	return text
}

// ParseClaim reads what String writes.
func ParseClaim(text string) (Claim, error) {
	var c Claim
	generation, ok := ClaimGeneration([]byte(text))
	if !ok {
		return c, fmt.Errorf("config string %q is no claim of aoe-csi", text)
	}
	c.Generation = string(generation)
	rest, scrubbed, progress := strings.Cut(text[len(claimPrefix)+GenerationLen:], scrubbedMark)
	c.Owner = strings.TrimPrefix(rest, " ")
	if progress {
		n, err := strconv.ParseUint(scrubbed, 10, 64)
		if err != nil {
			return Claim{}, fmt.Errorf("config string %q: %w", text, err)
		}
		c.Scrubbed = n
	}
	return c, nil
}

// ClaimGeneration finds the generation in a claim, without allocating; false if it is none.
func ClaimGeneration(text []byte) (generation []byte, ok bool) {
	rest, ok := bytes.CutPrefix(text, []byte(claimPrefix))
	if !ok || len(rest) < GenerationLen || len(rest) > GenerationLen && rest[GenerationLen] != ' ' {
		return nil, false
	}
	return rest[:GenerationLen], true
}
