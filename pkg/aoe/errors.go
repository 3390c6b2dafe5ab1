package aoe

import (
	"errors"
	"strconv"
)

// What can be wrong with received bytes. All are predeclared: a sender of garbage makes nobody allocate.
var (
	// ErrTruncated: the bytes end before the message does. A TruncatedError matches it.
	ErrTruncated = errors.New("truncated")
	// ErrNotAoE: the ethertype is another one.
	ErrNotAoE = errors.New("not an AoE frame")
	// ErrVersion: an AoE version other than 1.
	ErrVersion = errors.New("unknown AoE version")
	// ErrCommand: the frame carries another command than the view that was asked for.
	ErrCommand = errors.New("frame of another command")
	// ErrArgument: a field has a value that the protocol does not allow.
	ErrArgument = errors.New("bad argument")
	// ErrMagic: a vendor command 0xF0 that is not our OPEN, or not version 1 of it.
	ErrMagic = errors.New("not an OPEN of this version")
)

// TruncatedError says which part of a frame is missing bytes. It matches ErrTruncated.
type TruncatedError struct {
	// Part of the frame, such as "header".
	Part string
	// Have and Need are lengths of the frame in bytes, from the destination MAC on.
	Have, Need int
}

// Error implements error.
func (e *TruncatedError) Error() string {
	return e.Part + " truncated: " + strconv.Itoa(e.Have) + " of " + strconv.Itoa(e.Need) + " bytes"
}

// Is makes errors.Is(err, ErrTruncated) true.
func (e *TruncatedError) Is(target error) bool { return target == ErrTruncated }

// Every fixed part has its errors ready, one per length that is too short.
var (
	shortHeader   = truncations("header", HeaderLen)
	shortATA      = truncations("ATA argument", ATALen)
	shortConfig   = truncations("config argument", ConfigLen)
	shortMACMask  = truncations("MAC mask argument", MACMaskLen)
	shortReserve  = truncations("reserve argument", ReserveLen)
	shortOpen     = truncations("OPEN argument", OpenLen)
	shortIdentify = truncations("IDENTIFY data", IdentifyLen)
)

// The parts of variable length have one error each, since there would be too many.
var (
	errShortData       = &partError{"ATA data longer than the frame", ErrTruncated}
	errShortString     = &partError{"config string longer than the frame", ErrTruncated}
	errShortDirectives = &partError{"MAC mask directives longer than the frame", ErrTruncated}
	errShortMACs       = &partError{"reserved MACs longer than the frame", ErrTruncated}
	errStringLength    = &partError{"config string longer than 1024 bytes", ErrArgument}
)

// partError is a predeclared error of a kind.
type partError struct {
	text string
	kind error
}

func (e *partError) Error() string { return e.text }
func (e *partError) Unwrap() error { return e.kind }

func truncations(part string, need int) []TruncatedError {
	errs := make([]TruncatedError, need)
	for have := range errs {
		errs[have] = TruncatedError{Part: part, Have: have, Need: need}
	}
	return errs
}

// checkLen returns nil if a frame of have bytes covers len(errs) bytes.
func checkLen(have int, errs []TruncatedError) error {
	if have < len(errs) {
		return &errs[have]
	}
	return nil
}
