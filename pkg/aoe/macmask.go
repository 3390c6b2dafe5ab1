package aoe

const (
	// MACMaskLen is the frame's length without directives.
	MACMaskLen = 28
	// MaxDirectives is how many the count byte can say.
	MaxDirectives = 255

	directiveLen = 8
)

// MaskCommand is the sub-command of MAC Mask List.
type MaskCommand uint8

// The sub-commands of MAC Mask List.
const (
	MaskRead MaskCommand = iota
	MaskEdit
)

// MaskError is why an edit stopped; the frame's error flag is not set for it.
type MaskError uint8

// The errors of an edit.
const (
	MaskNoError MaskError = iota
	MaskUnspecified
	MaskBadDirective
	MaskFull
)

// DirectiveCommand is what an edit does with one address.
type DirectiveCommand uint8

// The directive commands; lists in answers have DirectiveNone.
const (
	DirectiveNone DirectiveCommand = iota
	DirectiveAdd
	DirectiveDelete
)

// Directive is one entry of a MAC Mask List message.
type Directive struct {
	Command DirectiveCommand
	MAC     MAC
}

// MACMask is a view over the argument of MAC Mask List.
type MACMask []byte

// MACMask borrows the frame's argument. The directives are checked to be in the frame, except in a failed edit's
// answer: there the count is the number applied, and no list follows.
func (f Frame) MACMask() (MACMask, error) {
	b, err := f.argument(CommandMACMask, shortMACMask)
	if err != nil {
		return nil, err
	}
	m := MACMask(b)
	if m.Error() == MaskNoError && len(m) < 4+directiveLen*m.Count() {
		return nil, errShortDirectives
	}
	return m, nil
}

// Command is the sub-command.
func (m MACMask) Command() MaskCommand { return MaskCommand(m[1]) }

// Error is why an edit failed; Count says at which directive.
func (m MACMask) Error() MaskError { return MaskError(m[2]) }

// Count is the number of directives, or with an Error how many were applied.
func (m MACMask) Count() int { return int(m[3]) }

// Directive is the i-th entry, 0 ≤ i < Count, of a message without Error.
func (m MACMask) Directive(i int) Directive {
	d := m[4+directiveLen*i:]
	return Directive{Command: DirectiveCommand(d[1]), MAC: MAC(d[2:8])}
}

// PutMACMask writes a MAC Mask List frame with h's header, whose command it sets, and returns its length. It borrows
// list, of at most MaxDirectives entries.
func PutMACMask(b []byte, h *Header, c MaskCommand, list []Directive) int {
	if len(list) > MaxDirectives {
		panic("aoe: more than 255 directives")
	}
	n := MACMaskLen + directiveLen*len(list)
	arg := putMask(b, h, c, MaskNoError, len(list), n)
	for i, d := range list {
		entry := arg[4+directiveLen*i:]
		entry[0], entry[1] = 0, byte(d.Command)
		copy(entry[2:8], d.MAC[:])
	}
	return n
}

// PutMACMaskFailed writes the answer to an edit that stopped after applied directives, and returns its length.
func PutMACMaskFailed(b []byte, h *Header, why MaskError, applied int) int {
	putMask(b, h, MaskEdit, why, applied, MACMaskLen)
	return MACMaskLen
}

func putMask(b []byte, h *Header, c MaskCommand, why MaskError, count, n int) []byte {
	h.Command = CommandMACMask
	PutHeader(b, h)
	arg := b[HeaderLen:n]
	arg[0], arg[1], arg[2], arg[3] = 0, byte(c), byte(why), byte(count)
	return arg
}
