package ublk

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// TestLayout: the structures are as long as the kernel's.
func TestLayout(t *testing.T) {
	for name, size := range map[string][2]uintptr{
		"ublksrv_ctrl_cmd":      {unsafe.Sizeof(controlCommand{}), 32},
		"ublksrv_io_cmd":        {unsafe.Sizeof(ioCommand{}), 16},
		"ublksrv_ctrl_dev_info": {unsafe.Sizeof(deviceInfo{}), 64},
	} {
		if size[0] != size[1] {
			t.Errorf("%s has %d bytes, not %d", name, size[0], size[1])
		}
	}
}

func TestEncodeParams(t *testing.T) {
	plain := blockdev.Params{SizeBytes: 1 << 30, LogicalBlock: 512, PhysicalBlock: 4096}
	full := plain
	full.ReadOnly, full.Rotational, full.Flush, full.FUA, full.Trim, full.WriteZeroes = true, true, true, true, true, true
	fuaAlone := plain
	fuaAlone.FUA = true
	for _, tt := range []struct {
		name   string
		params blockdev.Params
		want   string
	}{
		{"plain", plain, "3c00000001000000" + "00000000090c0c0c0002000000000000" + "00002000000000000000000000000000" +
			"0000000000000000000000000000000000000000"},
		{"full", full, "3c00000003000000" + "0f000000090c0c0c0002000000000000" + "00002000000000000000000000000000" +
			"0000000000100000000040000000400001000000"},
		{"FUA without a cache", fuaAlone, "3c00000001000000" + "00000000090c0c0c0002000000000000" + "00002000000000000000000000000000" +
			"0000000000000000000000000000000000000000"},
	} {
		if got := hex.EncodeToString(encodeParams(tt.params)); got != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

func TestKnownBad(t *testing.T) {
	for _, tt := range []struct {
		version   [3]int
		namespace bool
		bad       bool
	}{
		{[3]int{6, 1, 192}, false, true},
		{[3]int{6, 8, 0}, false, true},
		{[3]int{6, 12, 0}, false, true},
		{[3]int{6, 12, 113}, false, true},
		{[3]int{6, 12, 114}, false, false},
		{[3]int{6, 12, 117}, true, false},
		{[3]int{6, 13, 9}, false, true},
		{[3]int{6, 14, 0}, false, true},
		{[3]int{6, 15, 0}, false, false},
		{[3]int{6, 16, 0}, true, false},
		{[3]int{6, 16, 1}, true, true},
		{[3]int{6, 16, 1}, false, false},
		{[3]int{6, 18, 4}, false, true},
		{[3]int{6, 18, 6}, false, false},
		{[3]int{6, 18, 7}, true, true},
		{[3]int{6, 18, 8}, true, false},
		{[3]int{7, 2, 7}, true, false},
	} {
		if why := knownBad(tt.version, tt.namespace); (why != "") != tt.bad {
			t.Errorf("%v, in a PID namespace %v: %q", tt.version, tt.namespace, why)
		}
	}
}

// TestMark: devices of ours are told from others', and from each other.
func TestMark(t *testing.T) {
	a, b := markOf("aoe-csi:u:a@1"), markOf("aoe-csi:u:b@1")
	if a&markMask != markMagic || b&markMask != markMagic || a == b || a != markOf("aoe-csi:u:a@1") {
		t.Errorf("marks %#x and %#x", a, b)
	}
}

func TestReserve(t *testing.T) {
	f := New()
	f.sys.root = t.TempDir()
	for _, name := range []string{"ublkc0", "ublkc2", "something"} {
		if err := os.MkdirAll(filepath.Join(f.sys.root, "class/ublk-char", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var got []int
	for range 3 {
		number, err := f.reserve()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, number)
	}
	f.unreserve(3)
	again, err := f.reserve()
	if err != nil {
		t.Fatal(err)
	}
	if got = append(got, again); !slices.Equal(got, []int{1, 3, 4, 3}) {
		t.Errorf("numbers %v, want 1, 3, 4 and 3 again", got)
	}
}

func TestBytes(t *testing.T) {
	s := sysfs{root: t.TempDir()}
	if n, err := s.bytes(3); n != 0 || err != nil {
		t.Errorf("no device: %d, %v", n, err)
	}
	if err := os.MkdirAll(filepath.Dir(s.block(3, "size")), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]uint64{"131072\n": 64 << 20, "0\n": 0} {
		if err := os.WriteFile(s.block(3, "size"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := s.bytes(3); n != want || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	if err := os.WriteFile(s.block(3, "size"), []byte("much"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.bytes(3); err == nil {
		t.Error("nonsense was taken")
	}
}

// TestProbeSaysWhy: on a host without the driver's device the error says what to look at.
func TestProbeSaysWhy(t *testing.T) {
	f := New()
	f.control.path = filepath.Join(t.TempDir(), "ublk-control")
	if err := f.Probe(t.Context()); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("Probe: %v", err)
	}
}

func TestParametersAreChecked(t *testing.T) {
	f := New()
	good := blockdev.Params{ID: "v@1", SizeBytes: 1 << 20, LogicalBlock: 512}
	for name, change := range map[string]func(*blockdev.Params){
		"no identifier": func(p *blockdev.Params) { p.ID = "" },
		"half a block":  func(p *blockdev.Params) { p.SizeBytes = 4096 + 256 },
		"too deep":      func(p *blockdev.Params) { p.Depth = 4096 },
		"no depth":      func(p *blockdev.Params) { p.Depth = -1 },
	} {
		p := good
		change(&p)
		if _, err := f.Create(t.Context(), p); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if len(f.reserved) != 0 {
		t.Errorf("numbers left reserved: %v", f.reserved)
	}
}

// TestRing: a real io_uring takes a message from another one, also when it is served by another thread than the one that made it.
func TestRing(t *testing.T) {
	r, err := uring.New(8, uring.SetupDisabled|uring.SetupSingleIssuer|uring.SetupCoopTaskrun)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
		t.Skipf("no io_uring on this machine: %v", err) // the VM's tests have one
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := wake(r.FD(), 7); err == nil {
		t.Error("a disabled ring took a message")
	}
	if err := r.Enable(); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Take(); ok {
		t.Error("a completion out of nothing")
	}
	for i := range uint64(20) { // the completion queue wraps around
		if err := wake(r.FD(), i); err != nil {
			t.Fatal(err)
		}
		if c, ok := r.Take(); !ok || c.UserData != i || c.Result != 0 {
			t.Errorf("completion %d: %+v, %v", i, c, ok)
		}
	}
	for range 8 {
		if r.Next() == nil {
			t.Fatal("ring full too early")
		}
	}
	if r.Next() != nil {
		t.Error("more submissions than the ring has")
	}
}
