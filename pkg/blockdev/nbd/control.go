package nbd

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// Generic netlink family, commands and attributes (include/uapi/linux/nbd-netlink.h).
const (
	familyName    = "nbd"
	familyVersion = 1

	genlConnect     = 1
	genlDisconnect  = 2
	genlReconfigure = 3
	genlStatus      = 5

	attrIndex      = 1
	attrSizeBytes  = 2
	attrBlockSize  = 3
	attrServer     = 5
	attrSockets    = 7
	attrDeadConn   = 8
	attrBackend    = 10
	attrSocketItem = 1
	attrSocketFD   = 1
)

// Server flags (include/uapi/linux/nbd.h).
const (
	flagHasFlags   = 1 << 0
	flagReadOnly   = 1 << 1
	flagSendFlush  = 1 << 2
	flagSendFUA    = 1 << 3
	flagRotational = 1 << 4
	flagSendTrim   = 1 << 5
)

// control makes the driver's control calls. All of them share a lock, so they share a watchdog.
type control struct{ blockdev.Watchdog }

// call sends one message to the driver, with the answer, if any, thrown away.
func (c *control) call(what string, command uint8, attributes []byte, late func(error)) error {
	err := c.Run(what, func() error { return execute(command, attributes) }, late)
	if err != nil && !errors.Is(err, blockdev.ErrHung) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

func execute(command uint8, attributes []byte) error {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is lost with it
	family, err := conn.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("generic netlink has no family %q: %w", familyName, blockdev.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	flags := netlink.Request | netlink.Acknowledge
	if command == genlConnect || command == genlStatus {
		flags = netlink.Request // these answer by themselves
	}
	message := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: attributes}
	_, err = conn.Execute(message, family.ID, flags)
	return err
}

// connectAttributes is the message that makes a device out of one socket.
func connectAttributes(number, socket int, p blockdev.Params) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(number))
	e.Uint64(attrSizeBytes, p.SizeBytes)
	e.Uint64(attrBlockSize, uint64(p.LogicalBlock))
	e.Uint64(attrServer, serverFlags(p))
	e.Uint64(attrDeadConn, uint64(p.DeadTimeout/time.Second))
	e.String(attrBackend, p.ID)
	// No TIMEOUT: with one socket and none set, a slow server is never cut off.
	encodeSocket(e, socket)
	return e.Encode()
}

// reconnectAttributes is the message that gives a device whose server died another socket. Neither size nor
// timeout may be in it: both make the kernel freeze the queue, which waits for the requests that nobody answers yet.
func reconnectAttributes(number, socket int, id string) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(number))
	e.String(attrBackend, id)
	encodeSocket(e, socket)
	return e.Encode()
}

func resizeAttributes(number int, id string, bytes uint64) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(number))
	e.String(attrBackend, id)
	e.Uint64(attrSizeBytes, bytes)
	return e.Encode()
}

func disconnectAttributes(number int) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(number))
	return e.Encode()
}

func encodeSocket(e *netlink.AttributeEncoder, socket int) {
	e.Nested(attrSockets, func(items *netlink.AttributeEncoder) error {
		items.Nested(attrSocketItem, func(item *netlink.AttributeEncoder) error {
			item.Uint32(attrSocketFD, uint32(socket))
			return nil
		})
		return nil
	})
}

// serverFlags: zeroes are not announced, since they may be asked for without giving up space, and an error to that would not have
// the kernel write them itself, as it does with ublk.
func serverFlags(p blockdev.Params) uint64 {
	flags := uint64(flagHasFlags)
	for _, f := range []struct {
		on   bool
		flag uint64
	}{
		{p.ReadOnly, flagReadOnly},
		{p.Flush, flagSendFlush},
		{p.Flush && p.FUA, flagSendFUA},
		{p.Trim, flagSendTrim},
		{p.Rotational, flagRotational},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}
