package initiator

import "errors"

// Outcomes of a request, Request.Err.
var (
	// ErrIO: the target said that the command failed, the request was outside the disk, or it was given up by Fail.
	ErrIO = errors.New("I/O error")
	// ErrDead: no answer for longer than the dead time.
	ErrDead = errors.New("target did not answer within the dead time")
	// ErrReserved: another host has reserved the target.
	ErrReserved = errors.New("target is reserved by another host")
	// ErrLost: acknowledged data that was not flushed may be gone; every later flush, write and trim of the attachment fails.
	ErrLost = errors.New("acknowledged writes may be lost")
	// ErrReadOnly: a write to a device attached read-only.
	ErrReadOnly = errors.New("device is read-only")
	// ErrUnsupported: the target does not know the command.
	ErrUnsupported = errors.New("not supported by the target")
	// ErrClosed: the device is being detached, or its shard is closed.
	ErrClosed = errors.New("device is closed")
)

// Outcomes of Attach and Detach; ErrNotAdmitted is also that of requests after a node was taken off, ErrFenced after
// it was let in again.
var (
	// ErrNoAnswer: nobody answered at the address in time.
	ErrNoAnswer = errors.New("no answer")
	// ErrIdentity: who answers at the address is not the volume meant.
	ErrIdentity = errors.New("another volume answers at the address")
	// ErrFenced: this node was taken off the volume, and what has been written there since must not be overwritten with what the attachment has left.
	ErrFenced = errors.New("the node was taken off the volume and admitted anew since it was attached")
	// ErrNotAdmitted: the target does not admit this node.
	ErrNotAdmitted = errors.New("not admitted by the target")
	// ErrExists: the address is attached already.
	ErrExists = errors.New("target is attached already")
	// ErrPending: requests are outstanding; ask again or use force.
	ErrPending = errors.New("requests are outstanding")
	// ErrNoInterface: none of the interfaces can be used.
	ErrNoInterface = errors.New("no usable interface")
)
