package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mountutils "k8s.io/mount-utils"
)

// fixed returns a Mounter that sees the mounts in entries.
func fixed(entries *[]entry) (*Mounter, *mountutils.FakeMounter) {
	kernel := mountutils.NewFakeMounter(nil)
	return newMounter(kernel, (&tools{}).runner(), func() ([]entry, error) { return *entries, nil }), kernel
}

func TestSourceAndReferences(t *testing.T) {
	entries := []entry{
		{path: "/staging", number: 11},
		{path: "/pod/data", number: 11},
		{path: "/pod/disk", number: 5, node: 12},
		{path: "/stacked", number: 11},
		{path: "/stacked", number: 13},
	}
	m, _ := fixed(&entries)
	for path, want := range map[string]uint64{"/staging": 11, "/pod/disk": 12, "/stacked": 13, "/pod": 0, "/staging/": 11} {
		if got, err := m.Source(path); err != nil || got != want {
			t.Errorf("Source(%s) = %d, %v; want %d", path, got, err, want)
		}
	}
	for device, want := range map[uint64]string{11: "/staging /pod/data /stacked", 12: "/pod/disk", 5: "", 99: ""} {
		got, err := m.References(device)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("References(%d) = %q, %v; want %q", device, got, err, want)
		}
	}
}

func TestSourceFollowsLinksInTheParent(t *testing.T) {
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	entries := []entry{{path: filepath.Join(real, "target"), number: 9}}
	m, _ := fixed(&entries)
	if got, err := m.Source(filepath.Join(link, "target")); err != nil || got != 9 {
		t.Errorf("Source through a link = %d, %v; want 9", got, err)
	}
}

func TestBind(t *testing.T) {
	source := t.TempDir()
	info, err := os.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	own := deviceOf(info)
	for _, test := range []struct {
		name     string
		there    []entry // at the target
		readOnly bool
		mounts   int // calls that end up in the log of the fake kernel
		refused  bool
	}{
		{name: "fresh", mounts: 1},
		{name: "fresh read-only", readOnly: true, mounts: 1},
		{name: "done already", there: []entry{{number: own}}},
		{name: "done already read-only", there: []entry{{number: own, readOnly: true}}, readOnly: true},
		{name: "another device", there: []entry{{number: own + 1}}, refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "pod", "mount")
			for i := range test.there {
				test.there[i].path = target
			}
			m, kernel := fixed(&test.there)
			err := m.Bind(source, target, test.readOnly)
			var refused *RefusedError
			if errors.As(err, &refused) != test.refused || (err != nil) != test.refused {
				t.Fatalf("Bind: %v, want refused: %v", err, test.refused)
			}
			if got := len(kernel.GetLog()); got != test.mounts {
				t.Errorf("%d mounts, want %d: %v", got, test.mounts, kernel.GetLog())
			}
			if test.mounts > 0 {
				if info, err := os.Stat(target); err != nil || !info.IsDir() {
					t.Errorf("target is not a directory: %v, %v", info, err)
				}
				points, _ := kernel.List()
				if got := len(points) == 1 && strings.Contains(strings.Join(points[0].Opts, ","), "ro"); got != test.readOnly {
					t.Errorf("mounted with %v, want read-only: %v", points, test.readOnly)
				}
			}
		})
	}
}

func TestBindMakesAFileForAFile(t *testing.T) {
	source := image(t, nil)
	target := filepath.Join(t.TempDir(), "publish", "disk")
	entries := []entry{}
	m, _ := fixed(&entries)
	if err := m.Bind(source, target, false); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(target); err != nil || !info.Mode().IsRegular() {
		t.Errorf("target: %v, %v; want a file", info, err)
	}
	if err := m.Bind(filepath.Join(t.TempDir(), "gone"), target, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Bind of a missing source: %v", err)
	}
}

func TestRemove(t *testing.T) {
	entries := []entry{}
	m, _ := fixed(&entries)
	dir := filepath.Join(t.TempDir(), "target")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "data")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(dir); err == nil {
		t.Error("a directory with something in it was removed")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Fatalf("what was in the directory is gone: %v", err)
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is missing
		if err := m.Remove(dir); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
}

func TestUnmountTakesAllAway(t *testing.T) {
	entries := []entry{{path: "/a", number: 1}, {path: "/a", number: 2}, {path: "/b", number: 3}}
	m, kernel := fixed(&entries)
	kernel.MountPoints = []mountutils.MountPoint{{Path: "/a"}, {Path: "/a"}, {Path: "/b"}}
	kernel.UnmountFunc = func(path string) error {
		for i := len(entries) - 1; i >= 0; i-- {
			if entries[i].path == path {
				entries = append(entries[:i], entries[i+1:]...)
				return nil
			}
		}
		return errors.New("not mounted")
	}
	if err := m.Unmount("/a"); err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].path != "/b" {
		t.Errorf("still mounted: %v", entries)
	}
}

// umount calls "not mounted" a success; a table that disagrees must not keep the caller for ever.
func TestUnmountGivesUp(t *testing.T) {
	entries := []entry{{path: "/a", number: 1}}
	m, _ := fixed(&entries)
	if err := m.Unmount("/a"); err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Errorf("Unmount = %v, want an error", err)
	}
}

func TestReadMountsKnowsTheRoot(t *testing.T) {
	entries, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.path == "/proc" && e.number != 0 {
			return
		}
	}
	t.Errorf("no /proc among %d mounts", len(entries))
}

func TestUsage(t *testing.T) {
	m := New()
	bytes, inodes, err := m.Usage(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if bytes[0] <= 0 || bytes[1] > bytes[0] || bytes[2] > bytes[0] || inodes[0] < inodes[1] {
		t.Errorf("usage %v bytes, %v inodes", bytes, inodes)
	}
	if _, _, err := m.Usage(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Usage of a missing path: %v", err)
	}
	if size, err := m.DeviceSize(image(t, nil)); err != nil || size != testSize {
		t.Errorf("DeviceSize = %d, %v; want %d", size, err, testSize)
	}
}

func TestDeviceNumberRefusesOthers(t *testing.T) {
	m := New()
	for _, path := range []string{"/dev/null", t.TempDir(), "/dev/does-not-exist"} {
		if number, err := m.DeviceNumber(path); err == nil {
			t.Errorf("DeviceNumber(%s) = %d, want an error", path, number)
		}
	}
}
