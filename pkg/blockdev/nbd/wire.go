package nbd

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// Sizes and magic numbers of the transmission phase (NBD doc/proto.md, "Transmission phase").
const (
	requestLen   = 28
	replyLen     = 16
	requestMagic = 0x25609513
	replyMagic   = 0x67446698
)

// Request types.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
)

// flagFUA in a request's command flags asks for durability before the reply.
const flagFUA = 1 << 0

// header is a request's header, decoded.
type header struct {
	flags  uint16
	kind   uint16
	cookie uint64
	offset uint64
	length uint32
}

// decodeHeader reads the first requestLen bytes of b.
func decodeHeader(b []byte) (header, error) {
	if magic := binary.BigEndian.Uint32(b); magic != requestMagic {
		return header{}, fmt.Errorf("nbd request: magic %#x instead of %#x", magic, requestMagic)
	}
	return header{
		flags:  binary.BigEndian.Uint16(b[4:]),
		kind:   binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// encodeReply fills the first replyLen bytes of b with a simple reply.
func encodeReply(b []byte, cookie uint64, errno syscall.Errno) {
	binary.BigEndian.PutUint32(b, replyMagic)
	binary.BigEndian.PutUint32(b[4:], wireError(errno))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// wireError maps to the errors that the protocol knows; Linux makes EIO of each of them and logs the number.
func wireError(errno syscall.Errno) uint32 {
	switch errno {
	case 0:
		return 0
	case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW,
		syscall.EOPNOTSUPP, syscall.ESHUTDOWN:
		return uint32(errno)
	default:
		return uint32(syscall.EIO)
	}
}
