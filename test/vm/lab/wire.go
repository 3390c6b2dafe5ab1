//go:build vm

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Wire sees whatever a host sends and receives from now on, and sends frames as they are.
type Wire struct {
	h  *Host
	fd int
}

// Wire opens the host's interface for looking on.
func (h *Host) Wire() *Wire {
	h.l.t.Helper()
	w := &Wire{h: h}
	err := h.inside(func() error {
		card, err := net.InterfaceByName(h.If)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)) // sent frames come with "all" only
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		h.l.t.Cleanup(func() { _ = unix.Close(w.fd) }) // nothing is lost with it
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: card.Index})
	})
	if err != nil {
		h.l.t.Fatal(err)
	}
	return w
}

// Find returns the first AoE frame within d that suits; nil if there is none.
func (w *Wire) Find(d time.Duration, suits func(aoe.Frame) bool) aoe.Frame {
	w.h.l.t.Helper()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(d); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			w.h.l.t.Fatal(err)
		}
		if f, err := aoe.ParseFrame(buf[:n]); err == nil && suits(f) {
			return append(aoe.Frame(nil), f...)
		}
	}
	return nil
}

// Send sends a frame, its source address and all.
func (w *Wire) Send(f aoe.Frame) {
	w.h.l.t.Helper()
	if _, err := unix.Write(w.fd, f); err != nil {
		w.h.l.t.Fatal(err)
	}
}

// DropWritesTo has the network swallow what the host would receive of writes to an LBA whose low bytes are not all zero.
func (h *Host) DropWritesTo(lba uint32) {
	h.l.t.Helper()
	// Offsets are from the end of the Ethernet header: 10 is the ATA flags, whose bit 0 is "write", 14 the LBA's lowest byte.
	match := []string{"u8", "0x01", "0x01", "at", "10"}
	for n := range 3 {
		match = append(match, "match", "u8", fmt.Sprintf("%#02x", byte(lba>>(8*n))), "0xff", "at", strconv.Itoa(14+n))
	}
	h.l.Run("tc", "-n", h.l.name, "qdisc", "add", "dev", h.port, "clsact")
	h.l.Run("tc", append(append([]string{"-n", h.l.name, "filter", "add", "dev", h.port, "egress", "protocol", "0x88a2", "u32", "match"},
		match...), "action", "drop")...)
}

// DropNothing ends that.
func (h *Host) DropNothing() {
	h.l.t.Helper()
	h.l.Run("tc", "-n", h.l.name, "qdisc", "del", "dev", h.port, "clsact")
}

// inside calls f in the host's network namespace.
func (h *Host) inside(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	ns, err := netns.GetFromName(h.NS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if err := netns.Set(ns); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Set(own)) }() // else the thread stays where it must not be
	return f()
}
