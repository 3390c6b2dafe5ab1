package aoe

import (
	"bytes"
	"errors"
	"testing"
)

var (
	testDst = MAC{0x02, 0, 0, 0, 0, 0x01}
	testSrc = MAC{0x02, 0, 0, 0, 0, 0x02}
)

// header is what most tests put in front.
func header() *Header {
	return &Header{Dst: testDst, Src: testSrc, Addr: Addr{7, 3}, Tag: 0x8fc00001}
}

func TestHeaderBytes(t *testing.T) {
	tests := []struct {
		name string
		h    Header
		want []byte // from offset 12
	}{
		{"request", Header{Addr: Addr{0x1234, 0x56}, Command: CommandConfig, Tag: 0xdeadbeef},
			[]byte{0x88, 0xa2, 0x10, 0, 0x12, 0x34, 0x56, 1, 0xde, 0xad, 0xbe, 0xef}},
		{"response", Header{Response: true, Addr: Any, Command: CommandOpen, Tag: 1},
			[]byte{0x88, 0xa2, 0x18, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1}},
		{"error", Header{Response: true, Error: ErrorReserved, Command: CommandReserve},
			[]byte{0x88, 0xa2, 0x1c, 6, 0, 0, 0, 3, 0, 0, 0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.h.Dst, tt.h.Src = testDst, testSrc
			b := bytes.Repeat([]byte{0xcc}, HeaderLen)
			if n := PutHeader(b, &tt.h); n != HeaderLen {
				t.Fatalf("PutHeader returned %d", n)
			}
			want := append(append(testDst[:len(testDst):len(testDst)], testSrc[:]...), tt.want...)
			if !bytes.Equal(b, want) {
				t.Fatalf("got  %x\nwant %x", b, want)
			}
			f, err := ParseFrame(b)
			if err != nil {
				t.Fatal(err)
			}
			got := Header{f.Dst(), f.Src(), f.IsResponse(), f.ErrorCode(), f.Addr(), f.Command(), f.Tag()}
			if got != tt.h || f.IsError() != (tt.h.Error != NoError) {
				t.Errorf("read back %+v", got)
			}
		})
	}
}

func TestParseFrameRefuses(t *testing.T) {
	good := make([]byte, HeaderLen)
	PutHeader(good, header())
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	tests := []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"empty", nil, ErrTruncated, "header truncated: 0 of 24 bytes"},
		{"one short", good[:23], ErrTruncated, "header truncated: 23 of 24 bytes"},
		{"IPv4", change(12, 0x08), ErrNotAoE, "not an AoE frame"},
		{"version 2", change(14, 0x20), ErrVersion, "unknown AoE version"},
		{"version 0", change(14, 0x00), ErrVersion, "unknown AoE version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := ParseFrame(tt.b)
			if !errors.Is(err, tt.want) || err.Error() != tt.text {
				t.Fatalf("got %v, want %q", err, tt.text)
			}
			if (f != nil) != errors.Is(tt.want, ErrVersion) {
				t.Errorf("frame %x", f)
			}
		})
	}
}

func TestArgumentRefuses(t *testing.T) {
	views := map[Command]func(Frame) error{
		CommandATA:     func(f Frame) error { _, err := f.ATA(); return err },
		CommandConfig:  func(f Frame) error { _, err := f.Config(); return err },
		CommandMACMask: func(f Frame) error { _, err := f.MACMask(); return err },
		CommandReserve: func(f Frame) error { _, err := f.Reserve(); return err },
		CommandOpen:    func(f Frame) error { _, err := f.Open(); return err },
	}
	lengths := map[Command]int{
		CommandATA: ATALen, CommandConfig: ConfigLen, CommandMACMask: MACMaskLen, CommandReserve: ReserveLen, CommandOpen: OpenLen,
	}
	for c, view := range views {
		b := make([]byte, 128)
		h := header()
		PutOpen(b, h, &OpenFields{})
		clear(b[28:])
		if c == CommandOpen {
			PutOpen(b, h, &OpenFields{})
		} else {
			clear(b[24:])
		}
		b[19] = byte(c)
		need := lengths[c]
		for n := HeaderLen; n < need; n++ {
			if err := view(Frame(b[:n])); !errors.Is(err, ErrTruncated) {
				t.Errorf("%v of %d bytes: %v", c, n, err)
			}
		}
		if err := view(Frame(b[:need])); err != nil {
			t.Errorf("%v of %d bytes: %v", c, need, err)
		}
		b[19] = 0x55
		if err := view(Frame(b)); !errors.Is(err, ErrCommand) {
			t.Errorf("%v: frame of another command: %v", c, err)
		}
	}
}

func TestReply(t *testing.T) {
	req := make([]byte, MinFrameLen)
	PutATA(req, &Header{Dst: Broadcast, Src: testSrc, Addr: Any, Tag: 42}, &ATAFields{Command: ATAIdentify, Sectors: 1, Device: 0xa0})
	own := Addr{9, 1}
	got := make([]byte, MinFrameLen)
	n := PutATAReply(got, req, testDst, own, StatusDRDY|StatusERR, ATAErrABRT)
	f := Frame(got[:n])
	if f.Dst() != testSrc || f.Src() != testDst || f.Addr() != own || f.Tag() != 42 || !f.IsResponse() || f.IsError() {
		t.Fatalf("header %x", got[:HeaderLen])
	}
	a, err := f.ATA()
	if err != nil || a.Status() != 0x41 || a.Error() != 4 || a.Sectors() != 1 {
		t.Fatalf("%v, argument %x", err, got[HeaderLen:n])
	}
	PutATAReply(req, req, testDst, own, StatusDRDY|StatusERR, ATAErrABRT)
	if !bytes.Equal(req[:n], got[:n]) {
		t.Errorf("in place %x\n  beside %x", req[:n], got[:n])
	}
	PutReply(req, got, testSrc, own, ErrorUnavailable)
	if f := Frame(req); !f.IsError() || f.ErrorCode() != ErrorUnavailable {
		t.Errorf("refusal %x", req[:HeaderLen])
	}
}

func TestPad(t *testing.T) {
	b := bytes.Repeat([]byte{0xcc}, 64)
	if n := Pad(b, 36); n != MinFrameLen || b[35] != 0xcc || b[36] != 0 || b[59] != 0 || b[60] != 0xcc {
		t.Errorf("padded to %d: %x", n, b)
	}
	if n := Pad(b, 61); n != 61 {
		t.Errorf("padded a long frame to %d", n)
	}
}
