package target

import "errors"

// Errors that decide what a caller does next; package shelf maps each to one gRPC code.
var (
	ErrInvalid   = errors.New("invalid argument")
	ErrNotFound  = errors.New("no such LUN")
	ErrExists    = errors.New("slot is taken")
	ErrTooLarge  = errors.New("larger than the shelf")
	ErrNoSpace   = errors.New("no room on the shelf")
	ErrAdmitted  = errors.New("a node is admitted")
	ErrBusy      = errors.New("operation in progress")
	ErrDuplicate = errors.New("shelf number is in use")
	ErrMismatch  = errors.New("directory belongs to another shelf")
	ErrFormat    = errors.New("metadata of a newer version")
	ErrLocked    = errors.New("directory is in use by another process")
	// ErrNotDurable is a File's: an fsync failed; acknowledged writes may be gone.
	ErrNotDurable = errors.New("data not durable")
	ErrClosed     = errors.New("shelf is closed")
)
