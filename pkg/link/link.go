package link

import (
	"errors"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// Errors that decide what a sender does next.
var (
	// ErrDown: the interface or the socket's peer is gone; the link may come back.
	ErrDown = errors.New("link is down")
	// ErrTooLong: a frame is longer than the link takes.
	ErrTooLong = errors.New("frame longer than the link's MTU")
)

// Link is one end of an Ethernet segment. Send and Receive belong to one thread (an event loop); neither blocks.
type Link interface {
	// Name is the interface's, or "local" for the socket to a target on the same host.
	Name() string
	// MAC is this end's address.
	MAC() [6]byte
	// MTU is how many bytes may follow the 14 bytes of Ethernet header.
	MTU() int
	// FD becomes readable when Receive has frames (or frames were let go).
	FD() int
	// Send hands frames to the network in order and says how many it took; the rest can be sent again later, err says why
	// they were not taken (nil: the network is full for now). The link holds each frame it took (Frame.Hold) for as
	// long as the network may still read it; a link that copies never does.
	Send(frames []*pool.Frame) (n int, err error)
	// Receive lends received frames, Ethernet header first, until the next call or Return: it fills dst and says how
	// many; 0 when there is none.
	Receive(dst [][]byte) (n int, err error)
	// Return ends the loan of received frames. FD may stay readable until it is called.
	Return()
	// Close is idempotent; held frames are released.
	Close() error
}
