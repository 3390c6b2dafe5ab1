package nbd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// fakeSysfs makes /sys/block with these devices: name → attributes.
func fakeSysfs(t *testing.T, devices map[string]map[string]string) sysfs {
	t.Helper()
	root := t.TempDir()
	for name, attributes := range devices {
		if err := os.MkdirAll(filepath.Join(root, name, "queue"), 0o700); err != nil {
			t.Fatal(err)
		}
		for attribute, value := range attributes {
			if err := os.WriteFile(filepath.Join(root, name, attribute), []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return sysfs{root: root}
}

func TestNumbers(t *testing.T) {
	f := New()
	f.sys = fakeSysfs(t, map[string]map[string]string{
		"nbd0": {"size": "2048", "pid": "17", "backend": "somebody"},
		"nbd1": {"size": "0"},
		"nbd2": {"size": "2048"}, // disconnected, and still held open
		"nbd4": {"size": "0", "pid": "18"},
		"sda":  {"size": "1"},
	})
	var got []int
	for range 4 {
		n, err := f.reserve()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n)
	}
	if fmt.Sprint(got) != "[1 3 5 6]" {
		t.Errorf("reserved %v, want [1 3 5 6]", got)
	}
	f.unreserve(3)
	if n, err := f.reserve(); err != nil || n != 3 {
		t.Errorf("reserved %d, %v; want 3 again", n, err)
	}
	for n := range maxNumber {
		f.reserved[n] = struct{}{}
	}
	if _, err := f.reserve(); !errors.Is(err, blockdev.ErrNoDevice) {
		t.Errorf("with every number taken: %v", err)
	}
}

func TestFind(t *testing.T) {
	s := fakeSysfs(t, map[string]map[string]string{
		"nbd0":  {"size": "1", "pid": "17", "backend": "v@1"},
		"nbd1":  {"size": "1", "pid": "17", "backend": "v@2"},
		"nbd2":  {"size": "0", "backend": "v@3"}, // no longer connected
		"nbd17": {"size": "1", "pid": "17", "backend": "v@4"},
		"nbdx":  {},
		"nbd5":  {"size": "1", "pid": "17"},
	})
	for _, tt := range []struct {
		id     string
		likely int
		want   int
	}{
		{"v@1", 0, 0}, {"v@2", 0, 1}, {"v@3", 2, -1}, {"v@4", 3, 17}, {"v@5", 0, -1}, {"", 5, -1},
	} {
		if got, err := s.find(tt.id, tt.likely); err != nil || got != tt.want {
			t.Errorf("find %q: %d, %v; want %d", tt.id, got, err, tt.want)
		}
	}
	f := New()
	f.sys = s
	if exists, err := f.Exists(blockdev.State{Number: 9, ID: "v@4"}); err != nil || !exists {
		t.Errorf("Exists: %v, %v", exists, err)
	}
	f.sys.root = filepath.Join(s.root, "missing")
	if exists, err := f.Exists(blockdev.State{ID: "v@4"}); err != nil || exists {
		t.Errorf("Exists without the driver: %v, %v", exists, err)
	}
}

// TestList: only what is configured and has our mark is found.
func TestList(t *testing.T) {
	f := New()
	f.sys = fakeSysfs(t, map[string]map[string]string{
		"nbd0": {"size": "1", "pid": strconv.Itoa(os.Getpid()), "backend": blockdev.Mark + "u:v@1"},
		"nbd1": {"size": "1", "pid": strconv.Itoa(1 << 30), "backend": blockdev.Mark + "u:v@2"}, // beyond the largest process ID
		"nbd2": {"size": "1", "backend": blockdev.Mark + "u:v@3"},                               // disconnected, and still held open
		"nbd3": {"size": "1", "pid": "1", "backend": "somebody's " + blockdev.Mark},
		"nbd4": {"size": "1", "pid": "1"},
		"sda":  {"size": "1"},
	})
	got, err := f.List()
	want := []blockdev.Found{
		{Number: 0, Path: "/dev/nbd0", ID: blockdev.Mark + "u:v@1", Served: true},
		{Number: 1, Path: "/dev/nbd1", ID: blockdev.Mark + "u:v@2"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("found %+v, %v; want %+v", got, err, want)
	}
}

func TestIdle(t *testing.T) {
	s := fakeSysfs(t, map[string]map[string]string{
		"nbd0": {"inflight": "       0        0"}, "nbd1": {"inflight": "       0        3"}, "nbd2": {"inflight": "1 0"},
	})
	for number, want := range []bool{true, false, false, true} {
		if idle, err := s.idle(number); err != nil || idle != want {
			t.Errorf("nbd%d is idle: %v, %v; want %v", number, idle, err, want)
		}
	}
}

func TestServerFlags(t *testing.T) {
	for _, tt := range []struct {
		p    blockdev.Params
		want uint64
	}{
		{blockdev.Params{}, 0x1},
		{blockdev.Params{FUA: true}, 0x1}, // the kernel wants FLUSH with it
		{blockdev.Params{Flush: true, FUA: true}, 0xd},
		{blockdev.Params{Flush: true, Trim: true}, 0x25},
		{blockdev.Params{ReadOnly: true, Rotational: true, WriteZeroes: true}, 0x13},
	} {
		if got := serverFlags(tt.p); got != tt.want {
			t.Errorf("%+v: flags %#x, want %#x", tt.p, got, tt.want)
		}
	}
}

// TestConnectAttributes reads the message back, and sees that what must not be in it is not.
func TestConnectAttributes(t *testing.T) {
	p := blockdev.Params{ID: "e7.3@abc", SizeBytes: 1 << 33, LogicalBlock: 512, DeadTimeout: time.Hour, Flush: true}
	b, err := connectAttributes(5, 9, p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint16]string{}
	for d.Next() {
		switch d.Type() {
		case attrIndex:
			got[d.Type()] = fmt.Sprint(d.Uint32())
		case attrBackend:
			got[d.Type()] = d.String()
		case attrSockets:
			d.Nested(func(items *netlink.AttributeDecoder) error {
				for items.Next() {
					items.Nested(func(item *netlink.AttributeDecoder) error {
						for item.Next() {
							got[attrSockets] += fmt.Sprintf("%d:%d:%d", items.Type(), item.Type(), item.Uint32())
						}
						return item.Err()
					})
				}
				return items.Err()
			})
		default:
			got[d.Type()] = fmt.Sprint(d.Uint64())
		}
	}
	want := map[uint16]string{attrIndex: "5", attrSizeBytes: "8589934592", attrBlockSize: "512", attrServer: "5",
		attrDeadConn: "3600", attrBackend: "e7.3@abc", attrSockets: "1:1:9"}
	if err := d.Err(); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("attributes %v, %v; want %v", got, err, want)
	}
}

func TestParamsAreChecked(t *testing.T) {
	f := New()
	f.sys = fakeSysfs(t, nil)
	good := blockdev.Params{ID: "x", SizeBytes: 4096, LogicalBlock: 512}
	for name, change := range map[string]func(*blockdev.Params){
		"no identifier": func(p *blockdev.Params) { p.ID = "" },
		"no size":       func(p *blockdev.Params) { p.SizeBytes = 0 },
		"half a block":  func(p *blockdev.Params) { p.SizeBytes = 4096 + 256 },
		"no block":      func(p *blockdev.Params) { p.LogicalBlock = 0 },
		"odd block":     func(p *blockdev.Params) { p.LogicalBlock = 520 },
		"huge block":    func(p *blockdev.Params) { p.LogicalBlock = 8192; p.SizeBytes = 8192 },
	} {
		p := good
		change(&p)
		if _, err := f.Create(t.Context(), p); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	d, err := f.Create(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if p := d.State().Params; p.Depth != defaultDepth || p.DeadTimeout != defaultDeadTimeout || p.ReplayAfter != defaultReplayAfter {
		t.Errorf("defaults: %+v", p)
	}
	if err := errors.Join(d.Stop(t.Context()), d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if len(f.reserved) != 0 {
		t.Errorf("numbers left reserved: %v", f.reserved)
	}
}

func TestRecoverWithoutADevice(t *testing.T) {
	f := New()
	f.sys = fakeSysfs(t, map[string]map[string]string{"nbd0": {"size": "1", "pid": "17", "backend": "other@1"}})
	s := blockdev.State{Number: 0, ID: "mine@1"}
	if _, err := f.Recover(t.Context(), s); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Recover: %v", err)
	}
	if err := f.Remove(t.Context(), s); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

// TestHungCall: a call that does not come back is given up, refuses others, and is forgiven when it comes back.
func TestHungCall(t *testing.T) {
	c := control{blockdev.Watchdog{Timeout: 20 * time.Millisecond}}
	release := make(chan struct{})
	heard := make(chan error, 1)
	err := c.Run("hang", func() error { <-release; return syscall.EBUSY }, func(err error) { heard <- err })
	if !errors.Is(err, blockdev.ErrHung) || !errors.Is(err, blockdev.ErrAbandoned) {
		t.Fatalf("hung call: %v", err)
	}
	if err := c.Run("next", func() error { return nil }, nil); !errors.Is(err, blockdev.ErrHung) || errors.Is(err, blockdev.ErrAbandoned) {
		t.Errorf("call beside a hung one: %v", err)
	}
	f := &Frontend{}
	f.control.Timeout = time.Millisecond
	if err := f.control.Run("hang", func() error { <-release; return nil }, nil); !errors.Is(err, blockdev.ErrAbandoned) {
		t.Errorf("hung call: %v", err)
	}
	if err := f.Probe(t.Context()); !errors.Is(err, blockdev.ErrUnsupported) || !errors.Is(err, blockdev.ErrHung) {
		t.Errorf("Probe beside a hung call: %v", err)
	}
	close(release)
	if err := <-heard; !errors.Is(err, syscall.EBUSY) {
		t.Errorf("late result: %v", err)
	}
	if err := c.Run("after", func() error { return unix.EPERM }, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("call after it came back: %v", err)
	}
}

// TestSettle: a device that is taken over has requests that nobody answers; the kernel would wait for them.
func TestSettle(t *testing.T) {
	for _, recovering := range []bool{false, true} {
		f := New()
		f.sys = fakeSysfs(t, map[string]map[string]string{"nbd3": {"queue/io_timeout": "as it was", "queue/max_sectors_kb": "as it was", "queue/rotational": "as it was"}})
		d := &device{f: f, recover: recovering, state: blockdev.State{Number: 3, Params: blockdev.Params{ReplayAfter: 5 * time.Second}}}
		if err := d.settle(); err != nil {
			t.Fatal(err)
		}
		for attribute, value := range map[string]string{"io_timeout": "5000", "max_sectors_kb": "256", "rotational": "0"} {
			if recovering {
				value = "as it was"
			}
			if got, err := f.sys.read(3, "queue", attribute); err != nil || got != value {
				t.Errorf("recovering %v: %s is %q, %v; want %q", recovering, attribute, got, err, value)
			}
		}
	}
}
