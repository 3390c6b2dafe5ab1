package aoe

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
)

// golden reads testdata/FILE.hex: a name and a frame a line.
func golden(t testing.TB, file string) map[string]Frame {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	frames := make(map[string]Frame)
	for line := range bytes.Lines(text) {
		name, digits, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatalf("%s: %s: %v", file, name, err)
		}
		frames[name] = b
	}
	return frames
}

// The kernel's frames, built again from what the package reads in them, are the same bytes.
func TestKernelRequestsBuiltAgain(t *testing.T) {
	for name, f := range golden(t, "kernel") {
		if strings.HasSuffix(name, "-answer") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f, err := ParseFrame(f)
			if err != nil {
				t.Fatal(err)
			}
			if f.IsResponse() || f.IsError() || f.Tag()&TagOwn != 0 {
				t.Errorf("header %x", f[:HeaderLen])
			}
			h := Header{Dst: f.Dst(), Src: f.Src(), Addr: f.Addr(), Tag: f.Tag()}
			b := make([]byte, len(f))
			if f.Command() == CommandConfig {
				c, err := f.Config()
				if err != nil || c.Command() != ConfigRead {
					t.Fatal(c, err)
				}
				PutConfig(b, &h, &ConfigFields{})
				b[29] = 0 // the kernel leaves the version 0 there
			} else {
				a, err := f.ATA()
				if err != nil {
					t.Fatal(err)
				}
				n := PutATA(b, &h, &ATAFields{Flags: a.Flags(), Feature: a.Feature(), Sectors: uint8(a.Sectors()), Command: a.Command(),
					LBA: a.LBA(), Device: a[7]})
				copy(b[n:], a.Data())
			}
			if !bytes.Equal(b, f) {
				t.Errorf("built %x\nwant  %x", b, []byte(f))
			}
		})
	}
}

func TestKernelReadsAndWrites(t *testing.T) {
	frames := golden(t, "kernel")
	tests := []struct {
		name    string
		flags   ATAFlags
		command ATACommand
		lba     uint64
		sectors int
		data    byte
	}{
		{"read-1", ATAExtended, ATAReadExt, 1000, 1, 0},
		{"read-1-answer", ATAExtended, StatusDRDY, 1000, 0, 'v'},
		{"read-2-answer", ATAExtended, StatusDRDY, 0, 0, 'v'},
		{"write-2", ATAExtended | ATAWrite, ATAWriteExt, 600, 2, 'w'},
		{"write-2-answer", ATAExtended | ATAWrite, StatusDRDY, 600, 0, 0},
	}
	for _, tt := range tests {
		a, err := frames[tt.name].ATA()
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if a.Flags() != tt.flags || a.Command() != tt.command || a.LBA() != tt.lba || a.Sectors() != tt.sectors {
			t.Errorf("%s: %x", tt.name, a[:12])
		}
		if tt.data == 0 {
			continue
		}
		n := 1
		if strings.Contains(tt.name, "-2") {
			n = 2
		}
		data, err := a.Payload(n)
		if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{tt.data}, n*SectorSize)) {
			t.Errorf("%s: data %x, %v", tt.name, head(data), err)
		}
		if _, err := a.Payload(n + 1); !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: one sector more: %v", tt.name, err)
		}
	}
}

func head(b []byte) []byte { return b[:min(len(b), 80)] }

func TestVbladeConfig(t *testing.T) {
	frames := golden(t, "vblade")
	tests := []struct {
		name    string
		command ConfigCommand
		text    string
		code    ErrorCode
	}{
		{"config-read-answer", ConfigRead, "", NoError},
		{"config-set-answer", ConfigSet, "first", NoError},
		{"config-set-again-answer", ConfigSet, "first", ErrorConfigSet},
		{"config-prefix-answer", ConfigPrefix, "first", NoError},
		{"config-test-answer", ConfigTest, "first", NoError},
		{"config-force-set-answer", ConfigForceSet, "", NoError},
		{"aoeping-answer", ConfigRead, "", NoError},
	}
	for _, tt := range tests {
		f := frames[tt.name]
		c, err := f.Config()
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		text, err := c.ConfigString()
		if err != nil || string(text) != tt.text || c.Command() != tt.command || f.ErrorCode() != tt.code || f.IsError() != (tt.code != 0) {
			t.Errorf("%s: %v %q, %v, %v", tt.name, c.Command(), text, f.ErrorCode(), err)
		}
		if !f.IsResponse() || f.Addr() != (Addr{7, 3}) || c.BufferCount() != 16 || c.Firmware() != 0x4019 || c.SectorCount() != 2 || c.Version() != 1 {
			t.Errorf("%s: %x", tt.name, f)
		}
	}
	if frames["config-test-other-answer"] != nil {
		t.Error("vblade answered a test of another string")
	}
	c, err := frames["aoeping"].Config()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.ConfigString(); err != nil || len(s) != MaxConfigString {
		t.Errorf("aoeping's string of %d bytes, %v", len(s), err)
	}
}

func TestVbladeATA(t *testing.T) {
	frames := golden(t, "vblade")
	tests := []struct {
		name          string
		code          ErrorCode
		status, error uint8
	}{
		{"identify-answer", NoError, 0x40, 0},
		{"identify-of-2-answer", ErrorArgument, 0xec, 0}, // echoed
		{"read-ext-answer", NoError, 0x40, 0},
		{"read-28-answer", NoError, 0x40, 0},
		{"read-past-the-end-answer", NoError, 0x41, ATAErrIDNF},
		{"write-ext-answer", NoError, 0x40, 0},
		{"write-cut-answer", ErrorArgument, 0x34, 0}, // echoed
		{"flush-answer", NoError, 0, 0},
		{"flush-ext-answer", NoError, 0x41, ATAErrABRT},
		{"trim-answer", NoError, 0x41, ATAErrABRT},
		{"read-reserved-answer", ErrorReserved, 0x24, 0}, // echoed
	}
	for _, tt := range tests {
		f := frames[tt.name]
		a, err := f.ATA()
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if f.IsError() != (tt.code != NoError) || f.ErrorCode() != tt.code || a.Status() != tt.status || a.Error() != tt.error {
			t.Errorf("%s: %v, status %#x, error %#x", tt.name, f.ErrorCode(), a.Status(), a.Error())
		}
		if tt.code == NoError && StatusFailed(a.Status()) != (tt.error != 0) {
			t.Errorf("%s: status %#x failed: %v", tt.name, a.Status(), StatusFailed(a.Status()))
		}
	}
}

func TestVbladeIdentify(t *testing.T) {
	for file, name := range map[string]string{"vblade": "identify-answer", "kernel": "identify-answer"} {
		a, err := golden(t, file)[name].ATA()
		if err != nil {
			t.Fatal(err)
		}
		d, err := ParseIdentify(a.Data())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(d.Serial(), "7.3:") || d.Model() != "Coraid EtherDrive vblade" || d.Firmware() != "V25" {
			t.Errorf("%s: serial %q, model %q, firmware %q", file, d.Serial(), d.Model(), d.Firmware())
		}
		if d.Sectors() != 2048 || !d.LBA48() || !d.IsATA() || !d.Flush() || d.FlushExt() || d.FUA() || d.WriteCache() || d.Trim() {
			t.Errorf("%s: %d sectors, LBA48 %v, flush %v %v, FUA %v, cache %v, trim %v", file, d.Sectors(), d.LBA48(), d.Flush(), d.FlushExt(), d.FUA(), d.WriteCache(), d.Trim())
		}
		if d.PhysicalSectorSize() != 512 || !d.Rotational() || d.QueueDepth() != 1 || !d.ChecksumValid() {
			t.Errorf("%s: %d, %v, %d, %v", file, d.PhysicalSectorSize(), d.Rotational(), d.QueueDepth(), d.ChecksumValid())
		}
	}
}

func TestVbladeLists(t *testing.T) {
	frames := golden(t, "vblade")
	self, eight, nine := testSrc, MAC{2, 0, 0, 0, 0, 8}, MAC{2, 0, 0, 0, 0, 9}
	masks := []struct {
		name  string
		err   MaskError
		count int
		list  []MAC
	}{
		{"mask-read-answer", MaskNoError, 0, nil},
		{"mask-add", MaskNoError, 2, []MAC{self, eight}},
		{"mask-add-answer", MaskNoError, 2, []MAC{self, eight}},
		{"mask-bad-answer", MaskBadDirective, 1, nil},
	}
	for _, tt := range masks {
		m, err := frames[tt.name].MACMask()
		if err != nil || m.Error() != tt.err || m.Count() != tt.count {
			t.Fatalf("%s: %x, %v", tt.name, []byte(m), err)
		}
		for i, mac := range tt.list {
			if d := m.Directive(i); d.MAC != mac || (d.Command == DirectiveAdd) != (tt.name == "mask-add") {
				t.Errorf("%s: directive %d is %v", tt.name, i, d)
			}
		}
	}
	reserves := []struct {
		name    string
		command ReserveCommand
		list    []MAC
		code    ErrorCode
	}{
		{"reserve-read-answer", ReserveRead, nil, NoError},
		{"reserve-for-another-answer", ReserveForceSet, []MAC{nine}, NoError},
		{"reserve-refused-answer", ReserveSet, []MAC{nine}, ErrorReserved},
		{"reserve-release-answer", ReserveForceSet, nil, NoError},
	}
	for _, tt := range reserves {
		f := frames[tt.name]
		r, err := f.Reserve()
		if err != nil || f.ErrorCode() != tt.code || r.Command() != tt.command || r.Count() != len(tt.list) {
			t.Fatalf("%s: %x, %v", tt.name, []byte(f), err)
		}
		for i, mac := range tt.list {
			if r.MAC(i) != mac {
				t.Errorf("%s: %v", tt.name, r.MAC(i))
			}
		}
	}
	if f := frames["open-answer"]; !f.IsError() || f.ErrorCode() != ErrorCommand {
		t.Errorf("OPEN: %x", head(f))
	}
}
