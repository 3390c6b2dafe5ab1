package aoe

// Sizes of the ATA command.
const (
	// SectorSize is the unit of every count and LBA on the wire, whatever the disk's own sectors are.
	SectorSize = 512
	// ATALen is the frame's length without data; data begin here.
	ATALen = 36
	// MaxATASectors is how many sectors the count byte can say.
	MaxATASectors = 255
)

// ATAFlags is the first byte of the argument.
type ATAFlags uint8

// The flags of AoEr11.
const (
	// ATAWrite: data go from initiator to target.
	ATAWrite ATAFlags = 0x01
	// ATAAsync: the target may acknowledge before the medium has the data. Nobody uses it.
	ATAAsync ATAFlags = 0x02
	// ATADevice: look at the device bit of the device/head register.
	ATADevice ATAFlags = 0x10
	// ATAExtended: the LBA has 48 bits.
	ATAExtended ATAFlags = 0x40
)

// ATACommand is an operation of the ATA command set.
type ATACommand uint8

// The operations that matter over AoE.
const (
	ATADataSetManagement ATACommand = 0x06
	ATARead              ATACommand = 0x20
	ATAReadExt           ATACommand = 0x24
	ATAReadDMAExt        ATACommand = 0x25
	ATAWriteSectors      ATACommand = 0x30
	ATAWriteExt          ATACommand = 0x34
	ATAWriteDMAExt       ATACommand = 0x35
	ATAWriteDMAFUAExt    ATACommand = 0x3d
	ATAReadVerify        ATACommand = 0x40
	ATAReadVerifyExt     ATACommand = 0x42
	ATASmart             ATACommand = 0xb0
	ATAReadDMA           ATACommand = 0xc8
	ATAWriteDMA          ATACommand = 0xca
	ATACheckPowerMode    ATACommand = 0xe5
	ATAFlush             ATACommand = 0xe7
	ATAFlushExt          ATACommand = 0xea
	ATAIdentify          ATACommand = 0xec
	ATASetFeatures       ATACommand = 0xef
)

// FeatureTrim is the feature of ATADataSetManagement that trims.
const FeatureTrim = 0x01

// Bits of the status register.
const (
	StatusERR  = 0x01
	StatusDRQ  = 0x08
	StatusDF   = 0x20
	StatusDRDY = 0x40
	StatusBSY  = 0x80
)

// Bits of the error register, meaningful with StatusERR.
const (
	ATAErrABRT = 0x04
	ATAErrIDNF = 0x10
	ATAErrUNC  = 0x40
)

// StatusFailed says whether a status register means that the command failed. DRDY is not required: vblade answers a flush
// with 0.
func StatusFailed(status uint8) bool { return status&(StatusBSY|StatusDF|StatusDRQ|StatusERR) != 0 }

// IsRead says whether the command moves data from the medium to the initiator.
func (c ATACommand) IsRead() bool {
	return c == ATAReadExt || c == ATARead || c == ATAReadDMAExt || c == ATAReadDMA
}

// IsWrite says whether the command moves data from the initiator to the medium.
func (c ATACommand) IsWrite() bool {
	switch c {
	case ATAWriteSectors, ATAWriteExt, ATAWriteDMA, ATAWriteDMAExt, ATAWriteDMAFUAExt:
		return true
	}
	return false
}

// IsExt says whether the command's LBA has 48 bits.
func (c ATACommand) IsExt() bool {
	switch c {
	case ATADataSetManagement, ATAReadExt, ATAReadDMAExt, ATAWriteExt, ATAWriteDMAExt, ATAWriteDMAFUAExt, ATAReadVerifyExt, ATAFlushExt:
		return true
	}
	return false
}

// ATA is a view over the argument of an ATA command and its data.
type ATA []byte

// ATA borrows the frame's argument; data are checked by Payload.
func (f Frame) ATA() (ATA, error) {
	b, err := f.argument(CommandATA, shortATA)
	return ATA(b), err
}

// Flags are the AFlags.
func (a ATA) Flags() ATAFlags { return ATAFlags(a[0]) }

// Feature is the feature register (request).
func (a ATA) Feature() uint8 { return a[1] }

// Error is the error register (response).
func (a ATA) Error() uint8 { return a[1] }

// Sectors is the count register. In responses it says nothing that can be relied on.
func (a ATA) Sectors() int { return int(a[2]) }

// Command is the operation (request).
func (a ATA) Command() ATACommand { return ATACommand(a[3]) }

// Status is the status register (response).
func (a ATA) Status() uint8 { return a[3] }

// LBA48 is the address as an extended command has it.
func (a ATA) LBA48() uint64 {
	return uint64(a[4]) | uint64(a[5])<<8 | uint64(a[6])<<16 | uint64(a[7])<<24 | uint64(a[8])<<32 | uint64(a[9])<<40
}

// LBA28 is the address as other commands have it.
func (a ATA) LBA28() uint64 { return a.LBA48() & 0x0fffffff }

// LBA is the sector's number with the width that the Extended flag says.
func (a ATA) LBA() uint64 {
	if a.Flags()&ATAExtended != 0 {
		return a.LBA48()
	}
	return a.LBA28()
}

// Data borrows all that follows the registers, padding included.
func (a ATA) Data() []byte { return a[ATALen-HeaderLen:] }

// Payload borrows exactly the first sectors·SectorSize bytes of data.
func (a ATA) Payload(sectors int) ([]byte, error) {
	n := sectors * SectorSize
	data := a.Data()
	if n > len(data) {
		return nil, errShortData
	}
	return data[:n:n], nil
}

// ATAFields are the registers that PutATA writes.
type ATAFields struct {
	Flags   ATAFlags
	Feature uint8 // request; error register in a response
	Sectors uint8
	Command ATACommand // request; status register in a response
	LBA     uint64     // 48 bits if Flags has ATAExtended, else 28
	Device  uint8      // high half of the device/head register, only without ATAExtended
}

// PutATA writes an ATA frame up to its data with h's header, whose command it sets, and returns ATALen. The caller puts
// data behind it, at b[ATALen:].
func PutATA(b []byte, h *Header, r *ATAFields) int {
	h.Command = CommandATA
	PutHeader(b, h)
	arg := b[HeaderLen:ATALen]
	arg[0], arg[1], arg[2], arg[3] = byte(r.Flags), r.Feature, r.Sectors, byte(r.Command)
	lba := r.LBA
	arg[4], arg[5], arg[6] = byte(lba), byte(lba>>8), byte(lba>>16)
	if r.Flags&ATAExtended != 0 {
		arg[7], arg[8], arg[9] = byte(lba>>24), byte(lba>>32), byte(lba>>40)
	} else {
		arg[7], arg[8], arg[9] = r.Device&0xf0|byte(lba>>24)&0x0f, 0, 0
	}
	arg[10], arg[11] = 0, 0
	return ATALen
}

// PutATAReply writes the answer to an ATA request up to its data and returns ATALen: flags, count and LBA are the
// request's, status and error registers are given. b may be req's own bytes.
func PutATAReply(b []byte, req Frame, src MAC, own Addr, status, errorRegister uint8) int {
	PutReply(b, req, src, own, NoError)
	copy(b[HeaderLen:ATALen], req[HeaderLen:ATALen])
	b[25], b[27] = errorRegister, status
	b[34], b[35] = 0, 0
	return ATALen
}

// MaxSectors is how many sectors fit in a frame on a link with this MTU (in bytes, Ethernet header not counted), by the rule that
// every implementation uses.
func MaxSectors(mtu int) int {
	return max(0, min(MaxATASectors, (mtu-ATALen)/SectorSize))
}
