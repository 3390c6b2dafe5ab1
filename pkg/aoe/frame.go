package aoe

import (
	"encoding/binary"
	"strconv"
)

// Lengths and limits in bytes, counted from the destination MAC, without a VLAN tag.
const (
	// EtherType of AoE.
	EtherType uint16 = 0x88a2
	// Version is the only one there is.
	Version = 1
	// EthernetLen is the part of a frame that the MTU does not count.
	EthernetLen = 14
	// HeaderLen covers Ethernet and AoE header; the command's argument follows.
	HeaderLen = 24
	// MinFrameLen is what Ethernet pads to, without the check sum; received frames may be shorter on virtual links.
	MinFrameLen = 60
)

// Flags, the low half of byte 14.
const (
	flagResponse = 0x8
	flagError    = 0x4
)

// Command is what the frame asks for.
type Command uint8

// The commands of AoEr11 and ours.
const (
	CommandATA     Command = 0
	CommandConfig  Command = 1
	CommandMACMask Command = 2
	CommandReserve Command = 3
	CommandOpen    Command = 0xf0
)

// String is the command's name.
func (c Command) String() string {
	switch c {
	case CommandATA:
		return "ATA"
	case CommandConfig:
		return "config"
	case CommandMACMask:
		return "MAC mask"
	case CommandReserve:
		return "reserve"
	case CommandOpen:
		return "OPEN"
	}
	return "command " + strconv.Itoa(int(c))
}

// ErrorCode says why a target refused a frame; an ATA command that failed is no such error.
type ErrorCode uint8

// The error codes of AoEr11.
const (
	NoError ErrorCode = iota
	ErrorCommand
	ErrorArgument
	ErrorUnavailable
	ErrorConfigSet
	ErrorVersion
	ErrorReserved
)

// String is the meaning in words.
func (e ErrorCode) String() string {
	switch e {
	case NoError:
		return "no error"
	case ErrorCommand:
		return "command not recognised"
	case ErrorArgument:
		return "bad argument"
	case ErrorUnavailable:
		return "device unavailable"
	case ErrorConfigSet:
		return "config string already set"
	case ErrorVersion:
		return "version not supported"
	case ErrorReserved:
		return "target reserved"
	}
	return "AoE error " + strconv.Itoa(int(e))
}

// Frame is a view over a whole Ethernet frame. Accessors need HeaderLen bytes, which ParseFrame checks.
type Frame []byte

// ParseFrame borrows b as a frame, padding included. With ErrVersion it returns the frame, too, so that a
// target can answer with ErrorVersion.
func ParseFrame(b []byte) (Frame, error) {
	if err := checkLen(len(b), shortHeader); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint16(b[12:]) != EtherType {
		return nil, ErrNotAoE
	}
	if b[14]>>4 != Version {
		return Frame(b), ErrVersion
	}
	return Frame(b), nil
}

// Dst is the destination.
func (f Frame) Dst() MAC { return MAC(f[0:6]) }

// Src is the sender.
func (f Frame) Src() MAC { return MAC(f[6:12]) }

// Version is the AoE version.
func (f Frame) Version() uint8 { return f[14] >> 4 }

// IsResponse says whether the frame goes from target to initiator.
func (f Frame) IsResponse() bool { return f[14]&flagResponse != 0 }

// IsError says whether the target refused; ErrorCode says why.
func (f Frame) IsError() bool { return f[14]&flagError != 0 }

// ErrorCode means something only if IsError.
func (f Frame) ErrorCode() ErrorCode { return ErrorCode(f[15]) }

// Addr is the target's address, in a request possibly wild.
func (f Frame) Addr() Addr { return Addr{Shelf: binary.BigEndian.Uint16(f[16:]), Slot: f[18]} }

// Command is what is asked or answered.
func (f Frame) Command() Command { return Command(f[19]) }

// Tag is the requester's.
func (f Frame) Tag() uint32 { return binary.BigEndian.Uint32(f[20:]) }

// SetDst changes the destination.
func (f Frame) SetDst(m MAC) { copy(f[0:6], m[:]) }

// SetSrc changes the sender.
func (f Frame) SetSrc(m MAC) { copy(f[6:12], m[:]) }

// SetAddr changes the target's address.
func (f Frame) SetAddr(a Addr) {
	binary.BigEndian.PutUint16(f[16:], a.Shelf)
	f[18] = a.Slot
}

// SetTag changes the tag.
func (f Frame) SetTag(tag uint32) { binary.BigEndian.PutUint32(f[20:], tag) }

// SetError marks a response as refused, or with NoError as not refused.
func (f Frame) SetError(code ErrorCode) {
	f[14] &^= flagError
	if code != NoError {
		f[14] |= flagError
	}
	f[15] = byte(code)
}

// Header is what PutHeader writes.
type Header struct {
	Dst, Src MAC
	Response bool
	Error    ErrorCode // NoError unless Response
	Addr     Addr
	Command  Command
	Tag      uint32
}

// PutHeader writes the first HeaderLen bytes of b and returns HeaderLen.
func PutHeader(b []byte, h *Header) int {
	_ = b[HeaderLen-1]
	copy(b[0:6], h.Dst[:])
	copy(b[6:12], h.Src[:])
	binary.BigEndian.PutUint16(b[12:], EtherType)
	b[14] = Version << 4
	if h.Response {
		b[14] |= flagResponse
	}
	f := Frame(b)
	f.SetError(h.Error)
	f.SetAddr(h.Addr)
	b[19] = byte(h.Command)
	f.SetTag(h.Tag)
	return HeaderLen
}

// PutReply writes the header of the answer to req, from src at the target's own address, and returns HeaderLen. Answers go to
// the sender with its tag and command. b may be req's own bytes.
func PutReply(b []byte, req Frame, src MAC, own Addr, code ErrorCode) int {
	return PutHeader(b, &Header{
		Dst: req.Src(), Src: src, Response: true, Error: code, Addr: own, Command: req.Command(), Tag: req.Tag(),
	})
}

// Pad zeroes what is missing to MinFrameLen behind a frame of n bytes in b and returns the padded length. Network
// cards pad by themselves, virtual interfaces forget to.
func Pad(b []byte, n int) int {
	if n >= MinFrameLen {
		return n
	}
	clear(b[n:MinFrameLen])
	return MinFrameLen
}

// argument is what follows the header, after a check of the command and of the argument's fixed length.
func (f Frame) argument(c Command, short []TruncatedError) ([]byte, error) {
	if err := checkLen(len(f), short); err != nil {
		return nil, err
	}
	if f.Command() != c {
		return nil, ErrCommand
	}
	return f[HeaderLen:], nil
}
