package aoe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

func TestATARegisters(t *testing.T) {
	tests := []struct {
		name string
		r    ATAFields
		want []byte // from offset 24
	}{
		{"read 48", ATAFields{Flags: ATAExtended, Sectors: 16, Command: ATAReadExt, LBA: 0x665544332211},
			[]byte{0x40, 0, 16, 0x24, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0, 0}},
		{"write 48 FUA", ATAFields{Flags: ATAExtended | ATAWrite, Sectors: 255, Command: ATAWriteDMAFUAExt, LBA: 1},
			[]byte{0x41, 0, 255, 0x3d, 1, 0, 0, 0, 0, 0, 0, 0}},
		{"read 28", ATAFields{Sectors: 1, Command: ATARead, LBA: 0x0abcdef, Device: 0xe0},
			[]byte{0, 0, 1, 0x20, 0xef, 0xcd, 0xab, 0xe0, 0, 0, 0, 0}},
		{"read 28, highest", ATAFields{Sectors: 1, Command: ATARead, LBA: 0xfffffff, Device: 0xe5},
			[]byte{0, 0, 1, 0x20, 0xff, 0xff, 0xff, 0xef, 0, 0, 0, 0}},
		{"trim", ATAFields{Flags: ATAExtended | ATAWrite, Feature: FeatureTrim, Sectors: 1, Command: ATADataSetManagement},
			[]byte{0x41, 1, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Repeat([]byte{0xcc}, 40)
			if n := PutATA(b, header(), &tt.r); n != ATALen || !bytes.Equal(b[24:36], tt.want) || b[36] != 0xcc {
				t.Fatalf("%d bytes: %x, want %x", n, b[24:], tt.want)
			}
			a, err := Frame(b).ATA()
			if err != nil {
				t.Fatal(err)
			}
			if a.Flags() != tt.r.Flags || a.Feature() != tt.r.Feature || a.Sectors() != int(tt.r.Sectors) || a.Command() != tt.r.Command || a.LBA() != tt.r.LBA {
				t.Errorf("read back %v %v %v %v %x", a.Flags(), a.Feature(), a.Sectors(), a.Command(), a.LBA())
			}
		})
	}
}

func TestATACommandKinds(t *testing.T) {
	read, write, ext := map[ATACommand]bool{}, map[ATACommand]bool{}, map[ATACommand]bool{}
	for c := range 256 {
		c := ATACommand(c)
		read[c], write[c], ext[c] = c.IsRead(), c.IsWrite(), c.IsExt()
	}
	check := func(what string, got map[ATACommand]bool, want ...ATACommand) {
		n := 0
		for _, is := range got {
			if is {
				n++
			}
		}
		if n != len(want) {
			t.Errorf("%d commands are %s, want %d", n, what, len(want))
		}
		for _, c := range want {
			if !got[c] {
				t.Errorf("%#x is not %s", c, what)
			}
		}
	}
	check("reads", read, 0x20, 0x24, 0x25, 0xc8)
	check("writes", write, 0x30, 0x34, 0x35, 0x3d, 0xca)
	check("extended", ext, 0x06, 0x24, 0x25, 0x34, 0x35, 0x3d, 0x42, 0xea)
}

func TestStatusFailed(t *testing.T) {
	for status, want := range map[uint8]bool{0: false, 0x40: false, 0x50: false, 0x41: true, 0x61: true, 0x60: true, 0x80: true, 0x48: true} {
		if StatusFailed(status) != want {
			t.Errorf("status %#x failed: %v", status, !want)
		}
	}
}

func TestMaxSectors(t *testing.T) {
	for mtu, want := range map[int]int{0: 0, 547: 0, 548: 1, 1500: 2, 4132: 8, 8228: 16, 9000: 17, 9216: 17, 9600: 18, 16110: 31, 65535: 127, 1 << 20: 255} {
		if got := MaxSectors(mtu); got != want {
			t.Errorf("MTU %d: %d sectors, want %d", mtu, got, want)
		}
	}
}

func TestConfigFields(t *testing.T) {
	b := make([]byte, ConfigLen+MaxConfigString)
	text := bytes.Repeat([]byte("x"), MaxConfigString)
	n := PutConfig(b, header(), &ConfigFields{BufferCount: 64, Firmware: 0x102, SectorCount: 17, Command: ConfigPrefix, ConfigString: text})
	if n != len(b) || !bytes.Equal(b[24:32], []byte{0, 64, 1, 2, 17, 0x12, 4, 0}) {
		t.Fatalf("%d bytes, argument %x", n, b[24:32])
	}
	c, err := Frame(b).Config()
	if err != nil || c.BufferCount() != 64 || c.Firmware() != 0x102 || c.SectorCount() != 17 || c.Command() != ConfigPrefix {
		t.Fatalf("%x, %v", []byte(c[:8]), err)
	}
	if s, err := c.ConfigString(); err != nil || !bytes.Equal(s, text) || cap(s) != len(s) {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	if c, _ := Frame(b[:n-1]).Config(); c != nil {
		if _, err := c.ConfigString(); !errors.Is(err, ErrTruncated) {
			t.Errorf("cut string: %v", err)
		}
	}
	binary.BigEndian.PutUint16(b[30:], MaxConfigString+1)
	if _, err := c.ConfigString(); !errors.Is(err, ErrArgument) {
		t.Errorf("long string: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a string of 1025 bytes was put")
		}
	}()
	PutConfig(make([]byte, 2000), header(), &ConfigFields{ConfigString: make([]byte, MaxConfigString+1)})
}

func TestListsCut(t *testing.T) {
	b := make([]byte, 4096)
	full := make([]Directive, MaxDirectives)
	for i := range full {
		full[i] = Directive{DirectiveAdd, MAC{byte(i)}}
	}
	n := PutMACMask(b, header(), MaskEdit, full)
	if n != MACMaskLen+255*8 {
		t.Fatalf("%d bytes", n)
	}
	if m, err := Frame(b[:n]).MACMask(); err != nil || m.Count() != 255 || m.Directive(254) != full[254] || m.Command() != MaskEdit {
		t.Errorf("full mask: %v", err)
	}
	if _, err := Frame(b[:n-1]).MACMask(); !errors.Is(err, ErrTruncated) {
		t.Errorf("cut mask: %v", err)
	}
	if n = PutMACMaskFailed(b, header(), MaskFull, 200); n != MACMaskLen {
		t.Errorf("failed edit of %d bytes", n)
	}
	if m, err := Frame(b[:n]).MACMask(); err != nil || m.Count() != 200 || m.Error() != MaskFull {
		t.Errorf("failed edit: %v", err)
	}
	macs := make([]MAC, MaxReserved)
	macs[254] = testSrc
	n = PutReserve(b, header(), ReserveForceSet, macs)
	if r, err := Frame(b[:n]).Reserve(); err != nil || r.Count() != 255 || r.MAC(254) != testSrc || r.Command() != ReserveForceSet {
		t.Errorf("full reservation: %v", err)
	}
	if _, err := Frame(b[:n-1]).Reserve(); !errors.Is(err, ErrTruncated) {
		t.Errorf("cut reservation: %v", err)
	}
}

func TestOpenFields(t *testing.T) {
	want := OpenFields{
		Op: CloseSession, Status: OpenBusy, Epoch: 63, Initiator: UUID{1, 15: 16}, Incarnation: 0x1122334455667788,
		Generation: Generation([]byte("abcdefghijklmnop")), CacheEpoch: 0x99aabbccddeeff00, Window: 4096, Admission: 0x01020304,
	}
	b := bytes.Repeat([]byte{0xcc}, 100)
	if n := PutOpen(b, header(), &want); n != 88 || b[88] != 0xcc {
		t.Fatalf("%d bytes", n)
	}
	// The offsets of docs/design.md.
	for _, field := range []struct {
		at   int
		want string
	}{
		{19, "\xf0"}, {24, "AoEO\x01\x01\x06\x3f\x01"}, {47, "\x10"}, {48, "\x11\x22\x33\x44\x55\x66\x77\x88"}, {56, "abcdefghijklmnop"},
		{72, "\x99\xaa\xbb\xcc\xdd\xee\xff\x00"}, {80, "\x00\x00\x10\x00\x01\x02\x03\x04"},
	} {
		if got := string(b[field.at : field.at+len(field.want)]); got != field.want {
			t.Errorf("at %d: %x, want %x", field.at, got, field.want)
		}
	}
	o, err := Frame(b).Open()
	if err != nil {
		t.Fatal(err)
	}
	got := OpenFields{o.Op(), o.Status(), o.Epoch(), o.Initiator(), o.Incarnation(), o.Generation(), o.CacheEpoch(), o.Window(), o.Admission()}
	if got != want {
		t.Errorf("read back %+v", got)
	}
	for at, v := range map[int]byte{24: 'B', 27: 'o', 28: 2} {
		c := bytes.Clone(b)
		c[at] = v
		if _, err := Frame(c).Open(); !errors.Is(err, ErrMagic) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

func TestTrim(t *testing.T) {
	tests := []struct {
		name         string
		blocks       int
		lba, sectors uint64
		covered      uint64
		entries      int
	}{
		{"nothing", 1, 5, 0, 0, 0},
		{"one sector", 1, 1<<48 - 1, 1, 1, 1},
		{"one entry", 1, 0, 65535, 65535, 1},
		{"two entries", 1, 8, 65536, 65536, 2},
		{"a block full", 1, 0, 64 * 65535, 64 * 65535, 64},
		{"more than a block", 1, 7, 1 << 40, 64 * 65535, 64},
		{"two blocks", 2, 7, 65 * 65535, 65 * 65535, 65},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			payload := bytes.Repeat([]byte{0xcc}, tt.blocks*SectorSize)
			if got := PutTrim(payload, tt.lba, tt.sectors); got != tt.covered {
				t.Fatalf("covered %d, want %d", got, tt.covered)
			}
			e := TrimEntries(payload)
			if e.Len() != tt.blocks*TrimEntriesPerBlock {
				t.Fatalf("%d entries", e.Len())
			}
			next, used := tt.lba, 0
			for i := range e.Len() {
				lba, n := e.Entry(i)
				if n == 0 {
					continue
				}
				if lba != next {
					t.Errorf("entry %d begins at %d, want %d", i, lba, next)
				}
				next += n
				used++
			}
			if next != tt.lba+tt.covered || used != tt.entries {
				t.Errorf("%d entries up to %d", used, next)
			}
		})
	}
}
