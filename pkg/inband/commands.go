package inband

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// asking is how often a command is sent, and how long it may take the first time.
type asking struct {
	tries   int
	timeout time.Duration
}

var (
	persistently = asking{5, firstTimeout}
	probing      = asking{3, firstTimeout}     // what some targets never answer
	patiently    = asking{2, 30 * time.Second} // what may take long
)

// ErrFailed says that the target executed the command and that it failed.
var ErrFailed = errors.New("command failed")

// Path is a way to a target.
type Path struct {
	Addr      aoe.Addr
	Interface string // of this host
	MAC       aoe.MAC
}

// ErrConfigSet says that the target has another config string already.
var ErrConfigSet = errors.New("config string is set already")

// Config reads the config string, and how much the target takes.
func (c *Client) Config(ctx context.Context, to Path) (Answer, error) {
	return c.config(ctx, to, aoe.ConfigRead, "")
}

// SetConfig stores the config string if the target has none, atomically; the same string again is success. ErrConfigSet if it has
// another, which is in the answer.
func (c *Client) SetConfig(ctx context.Context, to Path, text string) (Answer, error) {
	a, err := c.config(ctx, to, aoe.ConfigSet, text)
	var refused *RefusedError
	if errors.As(err, &refused) && refused.Code == aoe.ErrorConfigSet {
		// Whether the same string again is an error is the target's choice, and how much of it comes back.
		if a, err = c.Config(ctx, to); err == nil && a.ConfigString != text {
			err = ErrConfigSet
		}
	}
	return a, err
}

// ForceConfig stores the config string whatever the target has; empty removes it.
func (c *Client) ForceConfig(ctx context.Context, to Path, text string) error {
	_, err := c.config(ctx, to, aoe.ConfigForceSet, text)
	return err
}

func (c *Client) config(ctx context.Context, to Path, command aoe.ConfigCommand, text string) (Answer, error) {
	f, err := c.exchange(ctx, to, persistently, func(b []byte, h *aoe.Header) int {
		return aoe.PutConfig(b, h, &aoe.ConfigFields{Command: command, ConfigString: []byte(text)})
	})
	if err != nil {
		return Answer{}, fmt.Errorf("config %s: %w", command, err)
	}
	a, ok := parseAnswer(to.Interface, f)
	if !ok {
		return Answer{}, fmt.Errorf("config %s: %s answered nonsense", command, to.Addr)
	}
	return a, nil
}

// Identify returns the 512 bytes of IDENTIFY DEVICE.
func (c *Client) Identify(ctx context.Context, to Path) (aoe.Identify, error) {
	data, err := c.ata(ctx, to, persistently, aoe.ATAFields{Sectors: 1, Command: aoe.ATAIdentify, Device: 0xa0}, nil, 1)
	if err != nil {
		return nil, fmt.Errorf("identify: %w", err)
	}
	id, err := aoe.ParseIdentify(data)
	if err == nil && !id.ChecksumValid() {
		err = errors.New("check sum is wrong")
	}
	return id, err
}

// Read reads sectors; as many as the path takes in a frame at most.
func (c *Client) Read(ctx context.Context, to Path, lba uint64, sectors int) ([]byte, error) {
	fields := aoe.ATAFields{Flags: aoe.ATAExtended, Sectors: uint8(sectors), Command: aoe.ATAReadExt, LBA: lba}
	data, err := c.ata(ctx, to, persistently, fields, nil, sectors)
	if err != nil {
		return nil, fmt.Errorf("read %d sectors at %d: %w", sectors, lba, err)
	}
	return data, nil
}

// Write writes whole sectors; as many as the path takes in a frame at most. A frame that was sent twice may be executed twice, up to
// aoe's duplicate lifetime later.
func (c *Client) Write(ctx context.Context, to Path, lba uint64, data []byte) error {
	sectors := len(data) / aoe.SectorSize
	fields := aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Sectors: uint8(sectors), Command: aoe.ATAWriteExt, LBA: lba}
	if _, err := c.ata(ctx, to, persistently, fields, data, 0); err != nil {
		return fmt.Errorf("write %d sectors at %d: %w", sectors, lba, err)
	}
	return nil
}

// Flush makes what was written durable, as far as the target does so.
func (c *Client) Flush(ctx context.Context, to Path) error {
	_, err := c.ata(ctx, to, patiently, aoe.ATAFields{Flags: aoe.ATAExtended, Command: aoe.ATAFlushExt}, nil, 0)
	if errors.Is(err, ErrFailed) {
		_, err = c.ata(ctx, to, patiently, aoe.ATAFields{Command: aoe.ATAFlush, Device: 0xa0}, nil, 0)
	}
	return err
}

// ata executes an ATA command and returns the sectors it answers.
func (c *Client) ata(ctx context.Context, to Path, how asking, fields aoe.ATAFields, data []byte, sectors int) ([]byte, error) {
	f, err := c.exchange(ctx, to, how, func(b []byte, h *aoe.Header) int {
		n := aoe.PutATA(b, h, &fields)
		return n + copy(b[n:], data)
	})
	if err != nil {
		return nil, err
	}
	a, err := f.ATA()
	if err != nil {
		return nil, err
	}
	if aoe.StatusFailed(a.Status()) {
		return nil, fmt.Errorf("%w: status %#x, error %#x", ErrFailed, a.Status(), a.Error())
	}
	return a.Payload(sectors)
}

// ErrReserved says that others have the target reserved.
var ErrReserved = errors.New("target is reserved by others")

// Reservation reads who may use the target: empty is everybody.
func (c *Client) Reservation(ctx context.Context, to Path) ([]aoe.MAC, error) {
	return c.reserve(ctx, to, aoe.ReserveRead, nil, probing)
}

// Reserve replaces the list if it is empty or has the sender's MAC, atomically; else ErrReserved.
func (c *Client) Reserve(ctx context.Context, to Path, macs []aoe.MAC) error {
	_, err := c.reserve(ctx, to, aoe.ReserveSet, macs, persistently)
	return err
}

// ForceReserve replaces the list whoever has it; an empty one lets everybody in.
func (c *Client) ForceReserve(ctx context.Context, to Path, macs []aoe.MAC) error {
	_, err := c.reserve(ctx, to, aoe.ReserveForceSet, macs, persistently)
	return err
}

func (c *Client) reserve(ctx context.Context, to Path, command aoe.ReserveCommand, macs []aoe.MAC, how asking) ([]aoe.MAC, error) {
	f, err := c.exchange(ctx, to, how, func(b []byte, h *aoe.Header) int { return aoe.PutReserve(b, h, command, macs) })
	var refused *RefusedError
	if errors.As(err, &refused) && refused.Code == aoe.ErrorReserved {
		err = ErrReserved
	}
	if err != nil {
		return nil, fmt.Errorf("reservation: %w", err)
	}
	r, err := f.Reserve()
	if err != nil {
		return nil, fmt.Errorf("reservation: %w", err)
	}
	list := make([]aoe.MAC, r.Count())
	for i := range list {
		list[i] = r.MAC(i)
	}
	return list, nil
}

// Masked reads the MAC mask list: who sees the target; empty is everybody.
func (c *Client) Masked(ctx context.Context, to Path) ([]aoe.MAC, error) {
	f, err := c.exchange(ctx, to, probing, func(b []byte, h *aoe.Header) int { return aoe.PutMACMask(b, h, aoe.MaskRead, nil) })
	if err != nil {
		return nil, fmt.Errorf("mask list: %w", err)
	}
	m, err := f.MACMask()
	if err != nil {
		return nil, fmt.Errorf("mask list: %w", err)
	}
	if m.Error() != aoe.MaskNoError {
		return nil, fmt.Errorf("mask list: %w", ErrFailed)
	}
	list := make([]aoe.MAC, m.Count())
	for i := range list {
		list[i] = m.Directive(i).MAC
	}
	return list, nil
}
