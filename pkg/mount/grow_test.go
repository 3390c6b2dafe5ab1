package mount

import (
	"errors"
	"slices"
	"strings"
	"testing"

	mountutils "k8s.io/mount-utils"
)

func TestGrow(t *testing.T) {
	broken := errors.New("no space in the group descriptors")
	for _, test := range []struct {
		name  string
		tools tools
		there []entry
		ran   []string // program and arguments; nil: none
		fails string
	}{
		{"ext4", tools{found: "ext4"}, []entry{{path: "/staging", number: 11}}, []string{"resize2fs", "/dev/nbd0"}, ""},
		{"xfs", tools{found: "xfs"}, []entry{{path: "/staging", number: 11}}, []string{"xfs_growfs", "-d", "/staging"}, ""},
		{"device read-only", tools{found: "ext4", readOnly: true}, []entry{{path: "/staging", number: 11}}, nil, ""},
		{"mounted read-only", tools{found: "ext4"}, []entry{{path: "/staging", number: 11, readOnly: true}}, nil, ""},
		{"not mounted", tools{found: "ext4"}, []entry{{path: "/other", number: 11}}, nil, "nothing is mounted at /staging"},
		{"not known", tools{blkidFail: true}, []entry{{path: "/staging", number: 11}}, nil, "/dev/nbd0"},
		{"fails", tools{found: "ext4", grow: broken}, []entry{{path: "/staging", number: 11}}, []string{"resize2fs", "/dev/nbd0"}, broken.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			fake := test.tools
			m := newMounter(mountutils.NewFakeMounter(nil), fake.runner(), func() ([]entry, error) { return test.there, nil })
			err := m.Grow("/dev/nbd0", "/staging")
			if (err != nil) != (test.fails != "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("error %v, want one with %q", err, test.fails)
			}
			i := slices.IndexFunc(fake.calls, func(c []string) bool { return c[0] == "resize2fs" || c[0] == "xfs_growfs" })
			switch {
			case i < 0 && test.ran != nil, i >= 0 && !slices.Equal(fake.calls[i], test.ran):
				t.Errorf("ran %q, want %q", fake.calls, test.ran)
			}
		})
	}
}

// A file system that was there is made as large as the device when it is mounted; a new one is so, and one on a read-only mount stays.
func TestFormatAndMountGrows(t *testing.T) {
	for _, test := range []struct {
		name, found string
		options     []string
		want        bool
	}{
		{"there already", "ext4", nil, true},
		{"new", "", nil, false},
		{"read-only", "ext4", []string{"ro"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			fake := &tools{found: test.found}
			m := newMounter(mountutils.NewFakeMounter(nil), fake.runner(), nil)
			device, staging := image(t, nil), t.TempDir()
			if err := m.FormatAndMount(device, staging, "ext4", nil, test.options); err != nil {
				t.Fatal(err)
			}
			if got := fake.ran("resize2fs"); (got != nil) != test.want {
				t.Errorf("resize2fs ran with %q; calls %q", got, fake.calls)
			}
		})
	}
}
