package attach

import "errors"

// Errors that decide the answer; Server maps each to one gRPC code.
var (
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrNotAttached: there is no such attachment.
	ErrNotAttached = errors.New("not attached")
	// ErrConflict: the volume is attached in another way than asked for.
	ErrConflict = errors.New("attached in another way")
	// ErrInUse: the device is mounted or held by somebody.
	ErrInUse = errors.New("device is in use")
	// ErrKernelDriver: the kernel's own aoe driver has the target.
	ErrKernelDriver = errors.New("the kernel's aoe driver has the target")
	// ErrPending: I/O waits for the target; ask again.
	ErrPending = errors.New("I/O is pending")
	// ErrNotNow: the device cannot grow at this moment; ask again.
	ErrNotNow = errors.New("cannot grow now")
	// ErrTooMany: the node has as many attachments as it can have.
	ErrTooMany = errors.New("too many attachments")
	// ErrNoFrontend: the front end asked for does not work here.
	ErrNoFrontend = errors.New("no such front end here")
	// ErrDamaged: what is known of the attachment cannot be trusted, so nothing is done about it.
	ErrDamaged = errors.New("record of the attachment is damaged")
	// ErrStopping: the initiator is going down.
	ErrStopping = errors.New("initiator is stopping")
)
