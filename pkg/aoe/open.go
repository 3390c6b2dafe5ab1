package aoe

import (
	"encoding/binary"
	"strconv"
)

// OpenLen is the length of an OPEN frame, request and response.
const OpenLen = 88

const (
	openMagic   = "AoEO"
	openVersion = 1
)

// OpenOp is the operation of OPEN.
type OpenOp uint8

// The operations of OPEN.
const (
	OpenSession OpenOp = iota
	CloseSession
)

// OpenStatus is the outcome in a response.
type OpenStatus uint8

// The outcomes of OPEN.
const (
	OpenDone OpenStatus = iota
	OpenNotAdmitted
	OpenOtherGeneration
	OpenStale
	OpenNoEpoch
	OpenNoSessions
	OpenBusy
	OpenOtherAdmission
)

// String is the meaning in words.
func (s OpenStatus) String() string {
	switch s {
	case OpenDone:
		return "done"
	case OpenNotAdmitted:
		return "not admitted"
	case OpenOtherGeneration:
		return "another generation here"
	case OpenStale:
		return "stale incarnation"
	case OpenNoEpoch:
		return "no epoch free now"
	case OpenNoSessions:
		return "sessions not used"
	case OpenBusy:
		return "older writes still running"
	case OpenOtherAdmission:
		return "admitted anew since"
	}
	return "OPEN status " + strconv.Itoa(int(s))
}

// UUID identifies an initiator.
type UUID [16]byte

// Generation identifies a volume: 16 characters of base32.
type Generation [16]byte

// String is the generation as text.
func (g Generation) String() string { return string(g[:]) }

// Open is a view over the argument of OPEN, the vendor command that begins a session (docs/design.md).
type Open []byte

// Open borrows the frame's argument and checks magic and version.
func (f Frame) Open() (Open, error) {
	b, err := f.argument(CommandOpen, shortOpen)
	if err != nil {
		return nil, err
	}
	if string(b[:4]) != openMagic || b[4] != openVersion {
		return nil, ErrMagic
	}
	return Open(b), nil
}

// Op is the operation.
func (o Open) Op() OpenOp { return OpenOp(o[5]) }

// Status is the outcome (response).
func (o Open) Status() OpenStatus { return OpenStatus(o[6]) }

// Epoch is the session's, 1 to MaxEpoch (response).
func (o Open) Epoch() uint8 { return o[7] }

// Initiator is who opens.
func (o Open) Initiator() UUID { return UUID(o[8:24]) }

// Incarnation grows with every new OPEN of this initiator on this volume and stays in its retransmissions.
func (o Open) Incarnation() uint64 { return binary.BigEndian.Uint64(o[24:]) }

// Generation is the volume meant.
func (o Open) Generation() Generation { return Generation(o[32:48]) }

// CacheEpoch changes when acknowledged data may have been lost (response).
func (o Open) CacheEpoch() uint64 { return binary.BigEndian.Uint64(o[48:]) }

// Window is within how many counters all outstanding frames of the session must lie (response).
func (o Open) Window() uint32 { return binary.BigEndian.Uint32(o[56:]) }

// Admission is which admission of a node the session is of: in a request the one that an earlier answer told, 0 if there was none; in a response the one in
// force. Each time a node is let in the number is another.
func (o Open) Admission() uint32 { return binary.BigEndian.Uint32(o[60:]) }

// OpenFields is what PutOpen writes. Requests leave the response's fields zero.
type OpenFields struct {
	Op          OpenOp
	Status      OpenStatus // response
	Epoch       uint8      // response
	Initiator   UUID
	Incarnation uint64
	Generation  Generation
	CacheEpoch  uint64 // response
	Window      uint32 // response, in frames
	Admission   uint32
}

// PutOpen writes an OPEN frame with h's header, whose command it sets, and returns its length, OpenLen.
func PutOpen(b []byte, h *Header, o *OpenFields) int {
	h.Command = CommandOpen
	PutHeader(b, h)
	arg := b[HeaderLen:OpenLen]
	copy(arg, openMagic)
	arg[4], arg[5], arg[6], arg[7] = openVersion, byte(o.Op), byte(o.Status), o.Epoch
	copy(arg[8:24], o.Initiator[:])
	binary.BigEndian.PutUint64(arg[24:], o.Incarnation)
	copy(arg[32:48], o.Generation[:])
	binary.BigEndian.PutUint64(arg[48:], o.CacheEpoch)
	binary.BigEndian.PutUint32(arg[56:], o.Window)
	binary.BigEndian.PutUint32(arg[60:], o.Admission)
	return OpenLen
}
