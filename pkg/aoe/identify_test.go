package aoe

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestIdentifyWordsLikeLibata(t *testing.T) {
	b := bytes.Repeat([]byte{0xcc}, 600)
	PutIdentify(b, &IdentifyFields{
		Serial: "abcdefghijklmnop", Firmware: "1", Model: "aoe-csi", Sectors: 1 << 40,
		Flush: true, FUA: true, TrimBlocks: 8, Physical4K: true, QueueDepth: 32,
	})
	if b[IdentifyLen] != 0xcc {
		t.Error("wrote behind the data")
	}
	d, err := ParseIdentify(b)
	if err != nil {
		t.Fatal(err)
	}
	// The numbers of the ACS standard, not of the code.
	for word, want := range map[int]uint16{
		0: 0, 10: 'a'<<8 | 'b', 17: 'o'<<8 | 'p', 18: 0x2020, 23: '1'<<8 | ' ', 27: 'a'<<8 | 'o', 47: 0x8000, 49: 0x0300,
		60: 0xffff, 61: 0x0fff, 69: 0x4020, 75: 31, 82: 0x0020, 83: 0x7400, 84: 0x4040, 85: 0x0020, 86: 0x3400, 87: 0x4040,
		100: 0, 101: 0, 102: 0x100, 103: 0, 105: 8, 106: 0x6003, 169: 1, 209: 0x4000, 217: 1,
	} {
		if got := d.word(word); got != want {
			t.Errorf("word %d is %#04x, want %#04x", word, got, want)
		}
	}
	if b[510] != 0xa5 || sum(d) != 0 || !d.ChecksumValid() {
		t.Errorf("check sum %x", b[510:512])
	}
	b[0x20]++
	if d.ChecksumValid() {
		t.Error("a changed byte passed the check sum")
	}
}

func TestIdentifyReadBack(t *testing.T) {
	tests := []struct {
		name string
		f    IdentifyFields
	}{
		{"nothing", IdentifyFields{QueueDepth: 1}},
		{"all", IdentifyFields{Serial: strings.Repeat("s", SerialLen), Firmware: "12345678", Model: strings.Repeat("m", ModelLen),
			Sectors: 1<<48 - 1, Flush: true, FUA: true, TrimBlocks: 65535, Physical4K: true, QueueDepth: 17, Rotational: true}},
		{"flush only", IdentifyFields{Sectors: 0x0fffffff, Flush: true, QueueDepth: 2}},
		{"odd lengths", IdentifyFields{Serial: "abc", Firmware: "x", Model: "a model of 17 ch.", Sectors: 1, QueueDepth: 32}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := make([]byte, IdentifyLen)
			PutIdentify(b, &tt.f)
			d, err := ParseIdentify(b)
			if err != nil {
				t.Fatal(err)
			}
			got := IdentifyFields{d.Serial(), d.Firmware(), d.Model(), d.Sectors(), d.Flush(), d.FUA(), 0, d.PhysicalSectorSize() == 4096, d.QueueDepth(), d.Rotational()}
			if d.Trim() {
				got.TrimBlocks = uint16(d.TrimBlocks())
			}
			if got != tt.f {
				t.Errorf("read back %+v", got)
			}
			if d.FlushExt() != tt.f.Flush || d.WriteCache() != tt.f.Flush || d.TrimZeroes() != (tt.f.TrimBlocks > 0) || !d.LBA48() || !d.IsATA() {
				t.Errorf("flush ext %v, cache %v, zeroes %v", d.FlushExt(), d.WriteCache(), d.TrimZeroes())
			}
			if !d.HasSerial(tt.f.Serial) || d.HasSerial(tt.f.Serial+"x") || tt.f.Serial != "" && d.HasSerial(tt.f.Serial[1:]) {
				t.Error("HasSerial")
			}
		})
	}
}

func TestIdentifyOfStrangers(t *testing.T) {
	b := make([]byte, IdentifyLen)
	d := Identify(b)
	d.put(wordLBA28, 0x5678)
	d.put(wordLBA28+1, 0xf234)
	if d.Sectors() != 0x2345678 {
		t.Errorf("28 bits: %#x", d.Sectors())
	}
	d.put(wordSupported2, bitFlush|bitFlushExt) // without the mark that the word is valid
	d.put(wordSupported3, 0xc000|bitFUA)
	d.put(wordSectorSizes, 1<<13|3)
	if d.Flush() || d.FlushExt() || d.FUA() || d.PhysicalSectorSize() != 512 || d.TrimBlocks() != 1 {
		t.Error("words without their mark were believed")
	}
	copy(b[2*wordSerial:], "\x00\x01/.\n\xff..\x7f\x00")
	if s := d.Serial(); s != "? ./??.. ?" {
		t.Errorf("serial %q", s)
	}
	for n := range IdentifyLen {
		if _, err := ParseIdentify(b[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}
