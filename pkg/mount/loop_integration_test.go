//go:build integration

package mount

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// loop makes a loop device of size bytes that is gone after the test.
func loop(t *testing.T, size int64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Fatalf("losetup (the test needs root and loop devices): %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return device
}

func TestRealFileSystems(t *testing.T) {
	for _, test := range []struct {
		fsType  string
		size    int64
		options []string
	}{
		{"ext4", 64 << 20, nil},
		{"ext4", 64 << 20, []string{"-b", "1024", "-O", "^flex_bg"}},
		{"ext4", 1 << 20, nil},
		{"xfs", 320 << 20, nil},
	} {
		t.Run(test.fsType+strings.Join(test.options, ""), func(t *testing.T) {
			device := loop(t, test.size)
			m := New()
			staging := filepath.Join(t.TempDir(), "staging")
			t.Cleanup(func() { _ = m.Unmount(staging) })
			mountIt := func() {
				t.Helper()
				if err := m.FormatAndMount(device, staging, test.fsType, test.options, nil); err != nil {
					t.Fatal(err)
				}
			}
			mountIt()
			number, err := m.DeviceNumber(device)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := m.Source(staging); err != nil || got != number {
				t.Errorf("Source = %d, %v; want %d", got, err, number)
			}
			if bytes, inodes, err := m.Usage(staging); err != nil || bytes[0] < test.size/2 || inodes[0] == 0 {
				t.Errorf("usage of %d bytes: %v, %v, %v", test.size, bytes, inodes, err)
			}
			kept := filepath.Join(staging, "kept")
			if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.Unmount(staging); err != nil {
				t.Fatal(err)
			}
			mountIt() // finds the file system and does not make another
			if got, err := os.ReadFile(kept); err != nil || string(got) != "kept" {
				t.Errorf("after the second mount: %q, %v", got, err)
			}
			if err := m.Unmount(staging); err != nil {
				t.Fatal(err)
			}
			other := map[string]string{"ext4": "xfs", "xfs": "ext4"}[test.fsType]
			var refused *RefusedError
			if err := m.FormatAndMount(device, staging, other, nil, nil); !errors.As(err, &refused) {
				t.Errorf("mount as %s: %v, want a refusal", other, err)
			}
			check := exec.Command("fsck."+test.fsType, "-n", device)
			if test.fsType == "xfs" {
				check = exec.Command("xfs_repair", "-n", device)
			}
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("file system is not clean: %v: %s", err, out)
			}
		})
	}
}

// An mkfs that is killed at any moment is repeated by the next call, and leaves nothing behind.
func TestInterruptedFormat(t *testing.T) {
	device := loop(t, 64<<20)
	m := New()
	if err := setMarker(device); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(bytes.Repeat([]byte{7}, 5000), 4096); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		t.Fatal(err)
	}
	staging := filepath.Join(t.TempDir(), "staging")
	if err := m.FormatAndMount(device, staging, "ext4", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(staging); err != nil {
		t.Fatal(err)
	}
}

func TestRealBinds(t *testing.T) {
	device := loop(t, 16<<20)
	m := New()
	number, err := m.DeviceNumber(device)
	if err != nil {
		t.Fatal(err)
	}
	staging := filepath.Join(t.TempDir(), "staging")
	if err := m.FormatAndMount(device, staging, "ext4", nil, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Unmount(staging) })
	dir := filepath.Join(t.TempDir(), "pod with space", "mount")
	node := filepath.Join(t.TempDir(), "publish", "disk")
	for range 2 { // twice is the same as once
		if err := m.Bind(staging, dir, true); err != nil {
			t.Fatal(err)
		}
		if err := m.Bind(device, node, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err == nil {
		t.Error("the read-only bind takes writes")
	}
	if size, err := m.DeviceSize(node); err != nil || size != 16<<20 {
		t.Errorf("DeviceSize of the bound node = %d, %v", size, err)
	}
	references, err := m.References(number)
	if err != nil || len(references) != 3 || !slices.Contains(references, node) || !slices.Contains(references, dir) {
		t.Errorf("References = %q, %v; want staging, %s and %s", references, err, dir, node)
	}
	for _, path := range []string{dir, node, dir} { // the last is gone already
		if err := m.Remove(path); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}
