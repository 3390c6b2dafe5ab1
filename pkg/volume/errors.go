package volume

import "errors"

// Errors that decide the answer; pkg/driver maps each to one gRPC code.
var (
	ErrInvalid      = errors.New("invalid argument")           // INVALID_ARGUMENT
	ErrNotFound     = errors.New("not found")                  // NOT_FOUND
	ErrConflict     = errors.New("exists and differs")         // ALREADY_EXISTS
	ErrOutOfRange   = errors.New("out of range")               // OUT_OF_RANGE
	ErrNoSpace      = errors.New("no shelf has room")          // RESOURCE_EXHAUSTED
	ErrUnavailable  = errors.New("shelf does not answer")      // UNAVAILABLE
	ErrUnauthorized = errors.New("shelf refused our identity") // UNAUTHENTICATED
	ErrInUse        = errors.New("volume is in use")           // FAILED_PRECONDITION
	ErrPrecondition = errors.New("not possible as things are") // FAILED_PRECONDITION
	ErrPending      = errors.New("operation in progress")      // ABORTED
	ErrBadToken     = errors.New("invalid starting token")     // ABORTED
)

// Errors of a Store that its user decides on; none of them leaves pkg/provision.
var (
	// ErrExists says that an object of this name is there already.
	ErrExists = errors.New("exists already")
	// ErrStale says that the object was changed since it was read: read again, decide again.
	ErrStale = errors.New("changed meanwhile")
)
