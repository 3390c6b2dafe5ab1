package aoe

import (
	"encoding/binary"
	"strings"
)

// IdentifyLen is the size of IDENTIFY data in bytes.
const IdentifyLen = 512

// The lengths of the strings in IDENTIFY data.
const (
	SerialLen   = 20
	FirmwareLen = 8
	ModelLen    = 40
)

// Words of IDENTIFY data, each 16 bits, little endian (ACS).
const (
	wordSerial      = 10
	wordFirmware    = 23
	wordModel       = 27
	wordMultiple    = 47
	wordCapability  = 49
	wordLBA28       = 60
	wordTrimReads   = 69
	wordQueueDepth  = 75
	wordMajor       = 80
	wordSupported1  = 82
	wordSupported2  = 83
	wordSupported3  = 84
	wordEnabled1    = 85
	wordEnabled2    = 86
	wordEnabled3    = 87
	wordLBA48       = 100
	wordTrimBlocks  = 105
	wordSectorSizes = 106
	wordLogicalSize = 117
	wordTrim        = 169
	wordAlignment   = 209
	wordRotation    = 217
	wordIntegrity   = 255
)

// Bits of those words.
const (
	bitLBA           = 1 << 9  // 49
	bitDMA           = 1 << 8  // 49
	bitTrimDetermin  = 1 << 14 // 69
	bitTrimZeroes    = 1 << 5  // 69
	bitWriteCache    = 1 << 5  // 82, 85
	bitLBA48         = 1 << 10 // 83, 86
	bitFlush         = 1 << 12 // 83, 86
	bitFlushExt      = 1 << 13 // 83, 86
	bitFUA           = 1 << 6  // 84, 87
	bitTrim          = 1 << 0  // 169
	validMask        = 3 << 14 // 83, 84, 87, 106
	valid            = 1 << 14
	integrityMark    = 0xa5
	lba28Max         = 0x0fffffff
	eightPerPhysical = 0x6003 // 106: valid, several logical per physical, 2^3 of them
)

// Identify is a view over the 512 bytes that IDENTIFY DEVICE answers.
type Identify []byte

// ParseIdentify borrows the first IdentifyLen bytes of b.
func ParseIdentify(b []byte) (Identify, error) {
	if err := checkLen(len(b), shortIdentify); err != nil {
		return nil, err
	}
	return Identify(b[:IdentifyLen:IdentifyLen]), nil
}

func (d Identify) word(n int) uint16 { return binary.LittleEndian.Uint16(d[2*n:]) }

// supported reads a bit of word 83, 84 or 87, which count only with their validity mark.
func (d Identify) supported(word int, bit uint16) bool {
	w := d.word(word)
	return w&validMask == valid && w&bit != 0
}

// Serial is the serial number without padding; it allocates. Bytes that are not printable ASCII become '?', but it is still the target's
// word: check it before it goes into a path.
func (d Identify) Serial() string { return d.text(wordSerial, SerialLen) }

// Firmware is the firmware revision, treated as Serial is.
func (d Identify) Firmware() string { return d.text(wordFirmware, FirmwareLen) }

// Model is the model, treated as Serial is.
func (d Identify) Model() string { return d.text(wordModel, ModelLen) }

// text undoes the swapped byte pairs.
func (d Identify) text(word, n int) string {
	b := make([]byte, n)
	for i := range b {
		c := d[2*word+(i^1)]
		switch {
		case c == 0: // some targets pad with zeroes
			c = ' '
		case c < ' ' || c > '~':
			c = '?'
		}
		b[i] = c
	}
	return strings.Trim(string(b), " ")
}

// HasSerial says whether the serial number is s, without allocating.
func (d Identify) HasSerial(s string) bool {
	if len(s) > SerialLen {
		return false
	}
	for i := range SerialLen {
		want := byte(' ')
		if i < len(s) {
			want = s[i]
		}
		if d[2*wordSerial+(i^1)] != want {
			return false
		}
	}
	return true
}

// IsATA says whether the data describe an ATA disk.
func (d Identify) IsATA() bool { return d.word(0)&0x8000 == 0 }

// LBA48 says whether extended commands are served. As the kernel's driver does, one of the two words is enough.
func (d Identify) LBA48() bool { return (d.word(wordSupported2)|d.word(wordEnabled2))&bitLBA48 != 0 }

// Sectors is the capacity in sectors of 512 bytes.
func (d Identify) Sectors() uint64 {
	if d.LBA48() {
		return binary.LittleEndian.Uint64(d[2*wordLBA48:]) & (1<<48 - 1)
	}
	return uint64(binary.LittleEndian.Uint32(d[2*wordLBA28:])) & lba28Max
}

// Flush says whether FLUSH CACHE is claimed; vblade claims it and does nothing.
func (d Identify) Flush() bool { return d.supported(wordSupported2, bitFlush) }

// FlushExt says whether FLUSH CACHE EXT is claimed.
func (d Identify) FlushExt() bool { return d.supported(wordSupported2, bitFlushExt) }

// FUA says whether WRITE DMA FUA EXT is served.
func (d Identify) FUA() bool { return d.supported(wordSupported3, bitFUA) }

// WriteCache says whether a volatile write cache is enabled.
func (d Identify) WriteCache() bool { return d.word(wordEnabled1)&bitWriteCache != 0 }

// Trim says whether DATA SET MANAGEMENT with TRIM is served.
func (d Identify) Trim() bool { return d.word(wordTrim)&bitTrim != 0 }

// TrimBlocks is how many sectors of range entries one TRIM may carry; at least 1.
func (d Identify) TrimBlocks() int { return max(1, int(d.word(wordTrimBlocks))) }

// TrimZeroes says whether trimmed sectors read as zeroes.
func (d Identify) TrimZeroes() bool {
	const both = bitTrimDetermin | bitTrimZeroes
	return d.word(wordTrimReads)&both == both
}

// PhysicalSectorSize is the disk's own, in bytes; smaller or unaligned writes are possible but slow.
func (d Identify) PhysicalSectorSize() int {
	w := d.word(wordSectorSizes)
	if w&validMask != valid || w&(1<<13) == 0 {
		return SectorSize
	}
	return SectorSize << (w & 0xf)
}

// Rotational is false only if the disk says so.
func (d Identify) Rotational() bool { return d.word(wordRotation) != 1 }

// QueueDepth is how many commands the disk takes at once, 1 to 32.
func (d Identify) QueueDepth() int { return int(d.word(wordQueueDepth)&0x1f) + 1 }

// ChecksumValid says whether the data pass their check sum; data without one pass.
func (d Identify) ChecksumValid() bool {
	return d[2*wordIntegrity] != integrityMark || sum(d) == 0
}

func sum(d Identify) (s byte) {
	for _, b := range d {
		s += b
	}
	return s
}

// IdentifyFields is what a target says about a disk.
type IdentifyFields struct {
	Serial, Firmware, Model string // ASCII, cut to SerialLen, FirmwareLen, ModelLen
	Sectors                 uint64 // of 512 bytes
	// Flush: FLUSH CACHE and FLUSH CACHE EXT make data durable, and before them a volatile cache may hold them.
	Flush bool
	FUA   bool
	// TrimBlocks is how many sectors of range entries one TRIM may carry; 0: no TRIM. Trimmed sectors read as zeroes.
	TrimBlocks uint16
	// Physical4K hints that 4096 bytes are written at once.
	Physical4K bool
	QueueDepth int // 1 to 32
	Rotational bool
}

// PutIdentify fills the first IdentifyLen bytes of b, check sum included.
func PutIdentify(b []byte, f *IdentifyFields) {
	d := Identify(b[:IdentifyLen])
	clear(d)
	d.putText(wordSerial, SerialLen, f.Serial)
	d.putText(wordFirmware, FirmwareLen, f.Firmware)
	d.putText(wordModel, ModelLen, f.Model)
	d.put(wordMultiple, 0x8000)
	d.put(wordCapability, bitLBA|bitDMA)
	d.put(wordQueueDepth, uint16(min(max(f.QueueDepth, 1), 32)-1))
	d.put(wordMajor, 1<<8|1<<7) // ATA/ATAPI-7 and ATA8-ACS
	binary.LittleEndian.PutUint32(d[2*wordLBA28:], uint32(min(f.Sectors, lba28Max)))
	binary.LittleEndian.PutUint64(d[2*wordLBA48:], f.Sectors&(1<<48-1))
	d.putFeatures(f)
	if f.Physical4K {
		d.put(wordSectorSizes, eightPerPhysical)
		d.put(wordAlignment, valid)
	}
	if !f.Rotational {
		d.put(wordRotation, 1)
	}
	d.put(wordIntegrity, integrityMark)
	d[IdentifyLen-1] = -sum(d)
}

// putFeatures sets the words of supported features and their enabled counterparts.
func (d Identify) putFeatures(f *IdentifyFields) {
	cache, features := uint16(0), uint16(bitLBA48)
	if f.Flush {
		cache = bitWriteCache
		features |= bitFlush | bitFlushExt
	}
	fua := uint16(0)
	if f.FUA {
		fua = bitFUA
	}
	d.put(wordSupported1, cache)
	d.put(wordSupported2, valid|features)
	d.put(wordSupported3, valid|fua)
	d.put(wordEnabled1, cache)
	d.put(wordEnabled2, features)
	d.put(wordEnabled3, valid|fua)
	if f.TrimBlocks > 0 {
		d.put(wordTrimReads, bitTrimDetermin|bitTrimZeroes)
		d.put(wordTrimBlocks, f.TrimBlocks)
		d.put(wordTrim, bitTrim)
	}
}

func (d Identify) put(word int, v uint16) { binary.LittleEndian.PutUint16(d[2*word:], v) }

// putText writes a space-padded string with its byte pairs swapped.
func (d Identify) putText(word, n int, s string) {
	for i := range n {
		c := byte(' ')
		if i < len(s) && s[i] >= ' ' && s[i] <= '~' {
			c = s[i]
		}
		d[2*word+(i^1)] = c
	}
}
