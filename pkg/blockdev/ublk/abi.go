package ublk

import (
	"encoding/binary"
	"math/bits"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// Control commands on /dev/ublk-control.
const (
	cmdGetDevInfo    = 0x80207502
	cmdAddDev        = 0xc0207504
	cmdStartDev      = 0xc0207506
	cmdStopDev       = 0xc0207507
	cmdSetParams     = 0xc0207508
	cmdStartRecovery = 0xc0207510
	cmdEndRecovery   = 0xc0207511
	cmdGetFeatures   = 0x80207513
	cmdDelDevAsync   = 0xc0207514
	cmdUpdateSize    = 0xc0207515
)

// I/O commands on /dev/ublkcN.
const (
	cmdFetch          = 0xc0107520
	cmdCommitAndFetch = 0xc0107521
)

// Features of the driver, and flags of a device.
const (
	flagRecovery   = 1 << 3
	flagReissue    = 1 << 4
	flagIoctl      = 1 << 6
	flagUserCopy   = 1 << 7
	flagUpdateSize = 1 << 10
)

// wantedFlags is what every device of ours is made with and cannot do without.
const wantedFlags = flagRecovery | flagReissue | flagIoctl | flagUserCopy

// States of a device.
const (
	stateDead     = 0
	stateLive     = 1
	stateQuiesced = 2
)

// Operations and flags of a request.
const (
	opRead        = 0
	opWrite       = 1
	opFlush       = 2
	opDiscard     = 3
	opWriteZeroes = 5

	requestFUA = 1 << 13
)

const (
	// descriptorSize is that of struct ublksrv_io_desc.
	descriptorSize = 24
	// dataOffset and the tag, shifted, make the position of the data of queue 0's requests in /dev/ublkcN.
	dataOffset = 0x80000000
	tagShift   = 25
	// anyQueue is the queue of a command that is about the whole device.
	anyQueue = 0xffff
)

// controlCommand is struct ublksrv_ctrl_cmd.
type controlCommand struct {
	device  uint32
	queue   uint16
	length  uint16
	address uint64
	data    uint64
	_       [8]byte
}

// ioCommand is struct ublksrv_io_cmd.
type ioCommand struct {
	queue  uint16
	tag    uint16
	result int32
	addr   uint64
}

// deviceInfo is struct ublksrv_ctrl_dev_info.
type deviceInfo struct {
	queues      uint16
	depth       uint16
	state       uint16
	_           uint16
	maxIOBytes  uint32
	device      uint32
	server      int32
	_           uint32
	flags       uint64
	serverFlags uint64 // ours: the kernel only keeps it
	ownerUID    uint32
	ownerGID    uint32
	_           [2]uint64
}

// Parts of struct ublk_params and their attributes.
const (
	paramsBasic   = 1 << 0
	paramsDiscard = 1 << 1
	paramsLen     = 60 // up to the end of the discard part

	attrReadOnly      = 1 << 0
	attrRotational    = 1 << 1
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3
)

const (
	// maxRequestBytes is the largest request: 32 jumbo frames. Larger ones gain nothing.
	maxRequestBytes = 256 << 10
	// maxTrimSectors is the largest discard, of one AoE frame's worth of ranges, so that none is out for long.
	maxTrimSectors = 1 << 22
)

// encodeParams describes the device to the kernel (struct ublk_params).
func encodeParams(p blockdev.Params) []byte {
	var attributes uint32
	for _, a := range []struct {
		on  bool
		bit uint32
	}{{p.ReadOnly, attrReadOnly}, {p.Rotational, attrRotational}, {p.Flush, attrVolatileCache}, {p.Flush && p.FUA, attrFUA}} {
		if a.on {
			attributes |= a.bit
		}
	}
	b := make([]byte, paramsLen)
	le := binary.LittleEndian
	types := uint32(paramsBasic)
	physical := max(p.PhysicalBlock, p.LogicalBlock)
	le.PutUint32(b[0:], paramsLen)
	le.PutUint32(b[8:], attributes)
	b[12] = shift(p.LogicalBlock)
	b[13] = shift(physical)
	b[14] = shift(physical) // optimal and smallest I/O: 0 would say one byte
	b[15] = shift(physical)
	le.PutUint32(b[16:], maxRequestBytes/512)
	le.PutUint64(b[24:], p.SizeBytes/512)
	if p.Trim || p.WriteZeroes {
		types |= paramsDiscard
		le.PutUint32(b[44:], physical) // granularity
		if p.Trim {
			le.PutUint32(b[48:], maxTrimSectors)
		}
		if p.WriteZeroes {
			le.PutUint32(b[52:], maxTrimSectors)
		}
		le.PutUint16(b[56:], 1) // range a request
	}
	le.PutUint32(b[4:], types)
	return b
}

// shift is the exponent of a power of two.
func shift(n uint32) uint8 { return uint8(bits.TrailingZeros32(n)) }
