package aoe

import (
	"encoding/binary"
	"strconv"
)

const (
	// ConfigLen is the frame's length without the config string.
	ConfigLen = 32
	// MaxConfigString is the longest config string in bytes.
	MaxConfigString = 1024
)

// ConfigCommand is the sub-command of Query Config.
type ConfigCommand uint8

// The sub-commands of AoEr11. A target that does not match a test stays silent.
const (
	ConfigRead ConfigCommand = iota
	ConfigTest
	ConfigPrefix
	ConfigSet
	ConfigForceSet
)

// String is the sub-command's name.
func (c ConfigCommand) String() string {
	switch c {
	case ConfigRead:
		return "read"
	case ConfigTest:
		return "test"
	case ConfigPrefix:
		return "prefix test"
	case ConfigSet:
		return "set"
	case ConfigForceSet:
		return "force set"
	}
	return "config command " + strconv.Itoa(int(c))
}

// Config is a view over the argument of Query Config.
type Config []byte

// Config borrows the frame's argument; the config string is checked by ConfigString.
func (f Frame) Config() (Config, error) {
	b, err := f.argument(CommandConfig, shortConfig)
	return Config(b), err
}

// BufferCount is how many frames the target can hold, for all initiators together. Treat 0 as 1.
func (c Config) BufferCount() uint16 { return binary.BigEndian.Uint16(c[0:]) }

// Firmware is the target's version, in its own numbering.
func (c Config) Firmware() uint16 { return binary.BigEndian.Uint16(c[2:]) }

// SectorCount is the most sectors of 512 bytes that the target takes in a frame. The field's 0 means 2, and 2 is returned.
func (c Config) SectorCount() int {
	if c[4] == 0 {
		return 2
	}
	return int(c[4])
}

// Version is the AoE version that the target speaks; requests may leave it 0.
func (c Config) Version() uint8 { return c[5] >> 4 }

// Command is the sub-command.
func (c Config) Command() ConfigCommand { return ConfigCommand(c[5] & 0xf) }

// ConfigString borrows the string: the target's in a response, the operand in a request (meaningless in a read).
func (c Config) ConfigString() ([]byte, error) {
	n := int(binary.BigEndian.Uint16(c[6:]))
	switch {
	case n > MaxConfigString:
		return nil, errStringLength
	case n > len(c)-8:
		return nil, errShortString
	}
	return c[8 : 8+n : 8+n], nil
}

// ConfigFields is what PutConfig writes. A request leaves all but Command and ConfigString zero.
type ConfigFields struct {
	BufferCount  uint16
	Firmware     uint16
	SectorCount  uint8
	Command      ConfigCommand
	ConfigString []byte // borrowed, at most MaxConfigString bytes
}

// PutConfig writes a Query Config frame with h's header, whose command it sets, and returns its length.
func PutConfig(b []byte, h *Header, c *ConfigFields) int {
	if len(c.ConfigString) > MaxConfigString {
		panic("aoe: config string longer than 1024 bytes")
	}
	h.Command = CommandConfig
	PutHeader(b, h)
	n := ConfigLen + len(c.ConfigString)
	arg := b[HeaderLen:n]
	binary.BigEndian.PutUint16(arg[0:], c.BufferCount)
	binary.BigEndian.PutUint16(arg[2:], c.Firmware)
	arg[4] = c.SectorCount
	arg[5] = Version<<4 | byte(c.Command&0xf)
	binary.BigEndian.PutUint16(arg[6:], uint16(len(c.ConfigString)))
	copy(arg[8:], c.ConfigString)
	return n
}
