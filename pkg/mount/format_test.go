package mount

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	mountutils "k8s.io/mount-utils"
	"k8s.io/utils/exec"
	testingexec "k8s.io/utils/exec/testing"
)

const testSize = 8 << 20

// image makes a file that stands for a device, with what write puts in it.
func image(t *testing.T, write func(data []byte)) string {
	t.Helper()
	data := make([]byte, testSize)
	if write != nil {
		write(data)
	}
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInspect(t *testing.T) {
	for _, test := range []struct {
		name  string
		write func([]byte)
		want  content
	}{
		{"zeroes", nil, contentBlank},
		{"first byte", func(d []byte) { d[0] = 1 }, contentData},
		{"end of the head", func(d []byte) { d[headSize-1] = 1 }, contentData},
		{"last byte", func(d []byte) { d[testSize-1] = 1 }, contentData},
		{"begin of the tail", func(d []byte) { d[testSize-headSize] = 1 }, contentData},
		{"at a sample", func(d []byte) { d[testSize/2+17] = 1 }, contentData},
		{"marker", func(d []byte) { copy(d[testSize-sectorSize:], marker) }, contentInterrupted},
		{"marker over remains", func(d []byte) { d[4096] = 7; copy(d[testSize-sectorSize:], marker) }, contentInterrupted},
		{"half a marker", func(d []byte) { copy(d[testSize-sectorSize:], marker[:20]) }, contentData},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := inspect(image(t, test.write))
			if err != nil || got != test.want {
				t.Errorf("inspect = %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestInspectRefusesWhatItCannotRead(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, device := range []string{short, filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		if got, err := inspect(device); err == nil || got == contentBlank {
			t.Errorf("inspect(%s) = %v, %v; want an error", device, got, err)
		}
	}
}

// tools answers blkid with what is found, runs mkfs as a function, and remembers the calls.
type tools struct {
	found     string
	blkidFail bool
	mkfs      func(device string) error
	readOnly  bool  // the device, as blockdev tells
	grow      error // of resize2fs and xfs_growfs
	calls     [][]string
}

func (f *tools) runner() exec.Interface {
	fake := &testingexec.FakeExec{}
	for range 10 {
		fake.CommandScript = append(fake.CommandScript, f.command)
	}
	return fake
}

func (f *tools) command(name string, args ...string) exec.Cmd {
	f.calls = append(f.calls, append([]string{name}, args...))
	answer := func() ([]byte, []byte, error) {
		switch {
		case name == "blkid" && f.blkidFail:
			return nil, nil, testingexec.FakeExitError{Status: 8}
		case name == "blkid" && f.found == "":
			return nil, nil, testingexec.FakeExitError{Status: 2}
		case name == "blkid":
			return []byte("TYPE=" + f.found + "\n"), nil, nil
		case strings.HasPrefix(name, "mkfs.") && f.mkfs != nil:
			return []byte("from mkfs"), nil, f.mkfs(args[len(args)-1])
		case name == "blockdev" && f.readOnly:
			return []byte("1\n"), nil, nil
		case name == "blockdev":
			return []byte("0\n"), nil, nil
		case name == "resize2fs" || name == "xfs_growfs":
			return []byte("from " + name), nil, f.grow
		}
		return nil, nil, nil
	}
	return testingexec.InitFakeCmd(&testingexec.FakeCmd{CombinedOutputScript: []testingexec.FakeAction{answer}}, name, args...)
}

// ran returns the arguments of the call of a program, nil if it did not run.
func (f *tools) ran(name string) []string {
	for _, call := range f.calls {
		if call[0] == name {
			return call[1:]
		}
	}
	return nil
}

func TestFormat(t *testing.T) {
	xfsHalf := func(d []byte) { copy(d, "XFSB"); d[126] = 1 }
	xfsWhole := func(d []byte) { copy(d, "XFSB") }
	mounted := func(d []byte) { d[1024+0x2c] = 1 }
	data := func(d []byte) { d[12345] = 1 }
	for _, test := range []struct {
		name     string
		write    func([]byte)
		found    string // by blkid
		fsType   string
		readOnly bool
		formats  bool
		refused  string // text of the refusal; empty: none
	}{
		{name: "blank ext4", fsType: "ext4", formats: true},
		{name: "blank xfs", fsType: "xfs", formats: true},
		{name: "blank read-only", fsType: "ext4", readOnly: true, refused: "read-only"},
		{name: "ext4 there", write: mounted, found: "ext4", fsType: "ext4"},
		{name: "ext4 there, read-only", found: "ext4", fsType: "ext4", readOnly: true},
		{name: "other file system", write: mounted, found: "ext4", fsType: "xfs", refused: "holds ext4, not xfs"},
		{name: "LVM", write: data, found: "LVM2_member", fsType: "ext4", refused: "holds LVM2_member"},
		{name: "unknown data", write: data, fsType: "ext4", refused: "not blank"},
		{name: "interrupted ext4", write: func(d []byte) { data(d); copy(d[testSize-sectorSize:], marker) }, fsType: "ext4", formats: true},
		{name: "interrupted xfs", write: xfsHalf, found: "xfs", fsType: "xfs", formats: true},
		{name: "xfs there", write: xfsWhole, found: "xfs", fsType: "xfs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			device := image(t, test.write)
			marked := false
			fake := &tools{found: test.found, mkfs: func(device string) error {
				found, err := inspect(device)
				marked = err == nil && found == contentInterrupted
				return nil
			}}
			m := newMounter(mountutils.NewFakeMounter(nil), fake.runner(), nil)
			made, err := m.format(device, test.fsType, []string{"-L", "data"}, test.readOnly)
			var refused *RefusedError
			if errors.As(err, &refused) != (test.refused != "") || (err != nil && !strings.Contains(err.Error(), test.refused)) {
				t.Fatalf("error %v, want a refusal with %q", err, test.refused)
			}
			args := fake.ran("mkfs." + test.fsType)
			if (args != nil) != test.formats || made != test.formats {
				t.Fatalf("mkfs ran with %q, made: %v, want it to run: %v", args, made, test.formats)
			}
			if !test.formats {
				return
			}
			if i := slices.Index(args, "-L"); i < 0 || args[i+1] != "data" || args[len(args)-1] != device {
				t.Errorf("mkfs got %q", args)
			}
			if !marked {
				t.Error("no marker on the device while mkfs ran")
			}
			if tail := readTail(t, device); bytes.HasPrefix(tail, marker) {
				t.Error("the marker is still there after mkfs")
			}
		})
	}
}

func TestFormatFailures(t *testing.T) {
	t.Run("blkid cannot tell", func(t *testing.T) {
		fake := &tools{blkidFail: true}
		m := newMounter(mountutils.NewFakeMounter(nil), fake.runner(), nil)
		if _, err := m.format(image(t, nil), "ext4", nil, false); err == nil || fake.ran("mkfs.ext4") != nil {
			t.Errorf("format = %v, mkfs ran: %v; want an error and no mkfs", err, fake.ran("mkfs.ext4"))
		}
	})
	t.Run("mkfs fails and is repeated", func(t *testing.T) {
		device := image(t, nil)
		fake := &tools{mkfs: func(string) error { return errors.New("killed") }}
		m := newMounter(mountutils.NewFakeMounter(nil), fake.runner(), nil)
		_, err := m.format(device, "ext4", nil, false)
		if err == nil || !strings.Contains(err.Error(), "from mkfs") {
			t.Fatalf("format = %v, want mkfs's words", err)
		}
		fake.mkfs = nil
		if _, err := m.format(device, "ext4", nil, false); err != nil {
			t.Fatalf("second format: %v", err)
		}
		if bytes.HasPrefix(readTail(t, device), marker) {
			t.Error("the marker is still there")
		}
	})
}

// A marker that outlived a finished mkfs must not lead to a second mkfs after the file system was used.
func TestFormatClearsForgottenMarker(t *testing.T) {
	device := image(t, func(d []byte) { copy(d[testSize-sectorSize:], marker) })
	m := newMounter(mountutils.NewFakeMounter(nil), (&tools{found: "ext4"}).runner(), nil)
	if _, err := m.format(device, "ext4", nil, false); err != nil {
		t.Fatal(err)
	}
	if bytes.HasPrefix(readTail(t, device), marker) {
		t.Error("the marker is still there")
	}
}

func readTail(t *testing.T, device string) []byte {
	t.Helper()
	data, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	return data[len(data)-sectorSize:]
}
