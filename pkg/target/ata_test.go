package target

import (
	"bytes"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// lunSectors is the size of the test LUN.
const lunSectors = 1 << 20 / aoe.SectorSize

func TestATACommands(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	c := r.client(macA)
	const ext, w = aoe.ATAExtended, aoe.ATAWrite
	for _, test := range []struct {
		name   string
		fields aoe.ATAFields
		data   []byte
		status uint8
		reg    uint8
		code   aoe.ErrorCode
	}{
		{"write ext", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt, Sectors: 2}, block(1, 2), 0x40, 0, 0},
		{"write 28", aoe.ATAFields{Flags: w, Command: aoe.ATAWriteSectors, LBA: 2, Sectors: 1}, block(2, 1), 0x40, 0, 0},
		{"write DMA", aoe.ATAFields{Flags: w, Command: aoe.ATAWriteDMA, LBA: 2, Sectors: 1}, block(2, 1), 0x40, 0, 0},
		{"write DMA ext", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteDMAExt, LBA: 2, Sectors: 1}, block(2, 1), 0x40, 0, 0},
		{"write FUA", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteDMAFUAExt, LBA: 2, Sectors: 1}, block(2, 1), 0x40, 0, 0},
		{"largest write", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt, LBA: 8, Sectors: 127}, block(3, 127), 0x40, 0, 0},
		{"last sector", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt, LBA: lunSectors - 1, Sectors: 1}, block(1, 1), 0x40, 0, 0},
		{"write past the end", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt, LBA: lunSectors - 1, Sectors: 2}, block(1, 2), 0x41, 0x10, 0},
		{"write at the largest LBA", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt, LBA: 1<<48 - 1, Sectors: 2}, block(1, 2), 0x41, 0x10, 0},
		{"write of nothing", aoe.ATAFields{Flags: ext | w, Command: aoe.ATAWriteExt}, nil, 0, 0, aoe.ErrorArgument},
		{"read ext", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadExt, Sectors: 1}, nil, 0x40, 0, 0},
		{"read 28", aoe.ATAFields{Command: aoe.ATARead, Sectors: 1}, nil, 0x40, 0, 0},
		{"read DMA", aoe.ATAFields{Command: aoe.ATAReadDMA, Sectors: 1}, nil, 0x40, 0, 0},
		{"read DMA ext", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadDMAExt, Sectors: 127}, nil, 0x40, 0, 0},
		{"read past the end", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadExt, LBA: lunSectors, Sectors: 1}, nil, 0x41, 0x10, 0},
		{"read more than a frame", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadExt, Sectors: 128}, nil, 0, 0, aoe.ErrorArgument},
		{"read of nothing", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadExt}, nil, 0, 0, aoe.ErrorArgument},
		{"flush", aoe.ATAFields{Command: aoe.ATAFlush}, nil, 0x40, 0, 0},
		{"flush ext", aoe.ATAFields{Flags: ext, Command: aoe.ATAFlushExt}, nil, 0x40, 0, 0},
		{"verify", aoe.ATAFields{Command: aoe.ATAReadVerify, Sectors: 255}, nil, 0x40, 0, 0},
		{"verify past the end", aoe.ATAFields{Flags: ext, Command: aoe.ATAReadVerifyExt, LBA: lunSectors, Sectors: 1}, nil, 0x41, 0x10, 0},
		{"verify of nothing", aoe.ATAFields{Command: aoe.ATAReadVerify}, nil, 0, 0, aoe.ErrorArgument},
		{"identify of two", aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 2}, nil, 0, 0, aoe.ErrorArgument},
		{"power mode", aoe.ATAFields{Command: aoe.ATACheckPowerMode}, nil, 0x40, 0, 0},
		{"SMART", aoe.ATAFields{Command: aoe.ATASmart}, nil, 0x41, 0x04, 0},
		{"set features", aoe.ATAFields{Command: aoe.ATASetFeatures, Feature: 2}, nil, 0x41, 0x04, 0},
		{"identify packet device", aoe.ATAFields{Command: 0xa1, Sectors: 1}, nil, 0x41, 0x04, 0},
		{"DSM without trim", aoe.ATAFields{Flags: ext | w, Command: aoe.ATADataSetManagement, Sectors: 1}, block(0, 1), 0x41, 0x04, 0},
		{"trim without ranges", aoe.ATAFields{Flags: ext | w, Command: aoe.ATADataSetManagement, Feature: 1}, nil, 0, 0, aoe.ErrorArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := c.call(c.ata(0, test.fields, test.data))
			if test.code != 0 {
				wantError(t, f, test.code)
				return
			}
			wantATA(t, f, test.status, test.reg)
		})
	}
}

// TestCutShort: a command whose data were cut off on the way is not answered. Its whole copy may come yet, and must be taken then.
func TestCutShort(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	c := r.client(macA)
	epoch := c.session(uuidA, 1)
	whole := c.write(tag(epoch, 1), 0, block(1, 2))
	c.silent(whole[:aoe.ATALen])
	c.silent(whole[:len(whole)-1])
	wantOK(t, c.call(whole))
	payload := make([]byte, aoe.SectorSize)
	aoe.PutTrim(payload, 0, 1)
	trim := c.ata(tag(epoch, 2), aoe.ATAFields{
		Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATADataSetManagement, Feature: aoe.FeatureTrim, Sectors: 1,
	}, payload)
	c.silent(trim[:len(trim)-1])
	wantOK(t, c.call(trim))
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	c := r.client(macA)
	data := make([]byte, 127*aoe.SectorSize)
	for i := range data {
		data[i] = byte(i * 7)
	}
	wantOK(t, c.call(c.write(0, 100, data)))
	a := wantOK(t, c.call(c.read(0, 100, 127)))
	if got, err := a.Payload(127); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read differs: %v", err)
	}
	a = wantOK(t, c.call(c.read(0, 99, 1)))
	if got, _ := a.Payload(1); !bytes.Equal(got, block(0, 1)) {
		t.Fatal("sector before is not zero")
	}
}

func TestTrimReadsZeroes(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	if !r.shelf.at(3).back.Trims() {
		t.Fatal("the file system of the test directory cannot punch holes")
	}
	c := r.client(macA)
	wantOK(t, c.call(c.write(0, 0, block(9, 64))))
	payload := make([]byte, aoe.SectorSize)
	aoe.PutTrim(payload, 3, 20)
	trim := aoe.ATAFields{Flags: aoe.ATAExtended | aoe.ATAWrite, Command: aoe.ATADataSetManagement, Feature: aoe.FeatureTrim, Sectors: 1}
	wantOK(t, c.call(c.ata(0, trim, payload)))
	a := wantOK(t, c.call(c.read(0, 0, 64)))
	want := bytes.Join([][]byte{block(9, 3), block(0, 20), block(9, 41)}, nil)
	if got, _ := a.Payload(64); !bytes.Equal(got, want) {
		t.Fatal("wrong bytes after trim")
	}
	aoe.PutTrim(payload, lunSectors-1, 2)
	wantATA(t, c.call(c.ata(0, trim, payload)), 0x41, 0x10)
}

func TestIdentify(t *testing.T) {
	r := newRig(t)
	r.lun(OpenAccess)
	c := r.client(macA)
	a := wantOK(t, c.call(c.ata(0, aoe.ATAFields{Command: aoe.ATAIdentify, Sectors: 1}, nil)))
	d, err := aoe.ParseIdentify(a.Data())
	if err != nil {
		t.Fatal(err)
	}
	if d.Serial() != testGen || d.Sectors() != lunSectors || !d.Flush() || !d.FlushExt() || !d.FUA() || !d.WriteCache() || !d.LBA48() ||
		!d.Trim() || !d.TrimZeroes() || d.Rotational() || d.PhysicalSectorSize() != 4096 || !d.ChecksumValid() {
		t.Fatalf("identify: serial %q, %d sectors", d.Serial(), d.Sectors())
	}
	if a := wantOK(t, c.call(c.ata(0, aoe.ATAFields{Command: aoe.ATACheckPowerMode}, nil))); a.Sectors() != 0xff {
		t.Fatalf("power mode %#x", a.Sectors())
	}
}
