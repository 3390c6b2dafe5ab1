package aoe

const (
	// ReserveLen is the frame's length without addresses.
	ReserveLen = 26
	// MaxReserved is how many addresses the count byte can say.
	MaxReserved = 255
)

// ReserveCommand is the sub-command of Reserve/Release.
type ReserveCommand uint8

// The sub-commands of Reserve/Release. An empty list releases.
const (
	ReserveRead ReserveCommand = iota
	// ReserveSet is refused with ErrorReserved unless the list is empty or has the sender.
	ReserveSet
	// ReserveForceSet replaces the list whoever has it.
	ReserveForceSet
)

// Reserve is a view over the argument of Reserve/Release.
type Reserve []byte

// Reserve borrows the frame's argument and checks that all addresses are in the frame.
func (f Frame) Reserve() (Reserve, error) {
	b, err := f.argument(CommandReserve, shortReserve)
	if err != nil {
		return nil, err
	}
	r := Reserve(b)
	if len(r) < 2+len(MAC{})*r.Count() {
		return nil, errShortMACs
	}
	return r, nil
}

// Command is the sub-command.
func (r Reserve) Command() ReserveCommand { return ReserveCommand(r[0]) }

// Count is the number of addresses.
func (r Reserve) Count() int { return int(r[1]) }

// MAC is the i-th address, 0 ≤ i < Count.
func (r Reserve) MAC(i int) MAC { return MAC(r[2+len(MAC{})*i:]) }

// PutReserve writes a Reserve/Release frame with h's header, whose command it sets, and returns its length. It borrows
// list, of at most MaxReserved addresses.
func PutReserve(b []byte, h *Header, c ReserveCommand, list []MAC) int {
	if len(list) > MaxReserved {
		panic("aoe: more than 255 reserved addresses")
	}
	h.Command = CommandReserve
	PutHeader(b, h)
	n := ReserveLen + len(MAC{})*len(list)
	arg := b[HeaderLen:n]
	arg[0], arg[1] = byte(c), byte(len(list))
	for i := range list {
		copy(arg[2+len(MAC{})*i:], list[i][:])
	}
	return n
}
