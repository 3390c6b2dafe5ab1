package aoe

import "encoding/binary"

const (
	// TrimEntrySize is the size of one entry in bytes.
	TrimEntrySize = 8
	// TrimEntriesPerBlock is how many entries a sector of payload has.
	TrimEntriesPerBlock = SectorSize / TrimEntrySize
	// MaxTrimSectors is how many sectors one entry can cover.
	MaxTrimSectors = 0xffff
)

// TrimEntries is a view over the payload of a TRIM: entries of 48 bits of LBA and 16 bits of sector count.
type TrimEntries []byte

// Len is the number of entries, unused ones included.
func (t TrimEntries) Len() int { return len(t) / TrimEntrySize }

// Entry is the i-th range; sectors 0 marks an unused entry.
func (t TrimEntries) Entry(i int) (lba, sectors uint64) {
	e := binary.LittleEndian.Uint64(t[i*TrimEntrySize:])
	return e & (1<<48 - 1), e >> 48
}

// PutTrim fills payload, whole sectors, with entries for as much of the range as fits, zeroes the rest and returns how
// many sectors of the range are covered.
func PutTrim(payload []byte, lba, sectors uint64) (covered uint64) {
	for at := 0; at < len(payload); at += TrimEntrySize {
		n := min(sectors-covered, MaxTrimSectors)
		e := uint64(0)
		if n > 0 {
			e = n<<48 | (lba+covered)&(1<<48-1)
		}
		binary.LittleEndian.PutUint64(payload[at:], e)
		covered += n
	}
	return covered
}
