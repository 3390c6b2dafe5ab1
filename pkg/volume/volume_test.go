package volume_test

import (
	"errors"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func TestParseID(t *testing.T) {
	good := volume.ID{Addr: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklm234"}
	tests := []struct {
		in   string
		want *volume.ID // nil: refused
	}{
		{"e7.3-abcdefghijklm234", &good},
		{"e65534.254-abcdefghijklm234", &volume.ID{Addr: aoe.Addr{Shelf: 65534, Slot: 254}, Generation: "abcdefghijklm234"}},
		{"", nil},
		{"e7.3", nil},
		{"-abcdefghijklm234", nil},
		{"e7.3-", nil},
		{"e7.3-abcdefghijklm23", nil},
		{"e7.3-abcdefghijklm2345", nil},
		{"e7.3-ABCDEFGHIJKLM234", nil},
		{"e7.3-abcdefghijklm239", nil},
		{"e7.3-abcdefghijklm2ß", nil},
		{"e7.3-abcdefghijklm234 ", nil},
		{"e07.3-abcdefghijklm234", nil},
		{"e7.255-abcdefghijklm234", nil},
		{"e65535.3-abcdefghijklm234", nil},
		{"E7.3-abcdefghijklm234", nil},
		{"7.3-abcdefghijklm234", nil},
		{"../../etc/passwd", nil},
	}
	for _, tt := range tests {
		got, err := volume.ParseID(tt.in)
		switch {
		case tt.want == nil && !errors.Is(err, volume.ErrInvalid):
			t.Errorf("ParseID(%q) = %v, %v; want ErrInvalid", tt.in, got, err)
		case tt.want != nil && (err != nil || got != *tt.want):
			t.Errorf("ParseID(%q) = %v, %v; want %v", tt.in, got, err, *tt.want)
		case tt.want != nil && got.String() != tt.in:
			t.Errorf("ParseID(%q).String() = %q", tt.in, got)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("e7.3-abcdefghijklm234")
	f.Add("e7.3-")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := volume.ParseID(s); err == nil && id.String() != s {
			t.Errorf("ParseID(%q) is %q: two handles for one volume", s, id)
		}
	})
}

func TestNewGenerationIsValidAndNew(t *testing.T) {
	seen := map[volume.Generation]bool{}
	for range 1000 {
		g := volume.NewGeneration()
		if _, err := volume.ParseGeneration(string(g)); err != nil {
			t.Fatal(err)
		}
		if seen[g] {
			t.Fatalf("generation %s came twice", g)
		}
		seen[g] = true
	}
}

func TestSize(t *testing.T) {
	const maxInt64 = 1<<63 - 1
	tests := []struct {
		required, limit, want int64
		err                   error
	}{
		{0, 0, 1 << 30, nil},
		{0, 1 << 20, 1 << 20, nil},
		{0, 1<<20 + 5, 1 << 20, nil},
		{0, 2 << 30, 1 << 30, nil},
		{1, 0, 4096, nil},
		{4096, 4096, 4096, nil},
		{4097, 0, 8192, nil},
		{4097, 8191, 0, volume.ErrOutOfRange},
		{0, 100, 0, volume.ErrOutOfRange},
		{10, 100, 0, volume.ErrOutOfRange},
		{-1, 0, 0, volume.ErrInvalid},
		{0, -1, 0, volume.ErrInvalid},
		{8192, 4096, 0, volume.ErrInvalid},
		{1 << 57, 0, 1 << 57, nil},
		{1<<57 + 1, 0, 0, volume.ErrOutOfRange},
		{maxInt64, 0, 0, volume.ErrOutOfRange},
		{maxInt64, maxInt64, 0, volume.ErrOutOfRange},
	}
	for _, tt := range tests {
		got, err := volume.CreateRequest{RequiredBytes: tt.required, LimitBytes: tt.limit}.Size()
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("size of [%d, %d] = %d, %v; want %d, %v", tt.required, tt.limit, got, err, tt.want, tt.err)
		}
	}
}

func TestParametersEqual(t *testing.T) {
	seven, sevenToo, eight := uint16(7), uint16(7), uint16(8)
	tests := []struct {
		a, b volume.Parameters
		want bool
	}{
		{volume.Parameters{}, volume.Parameters{}, true},
		{volume.Parameters{Shelf: &seven}, volume.Parameters{Shelf: &sevenToo}, true},
		{volume.Parameters{Shelf: &seven}, volume.Parameters{Shelf: &eight}, false},
		{volume.Parameters{Shelf: &seven}, volume.Parameters{}, false},
		{volume.Parameters{}, volume.Parameters{Shelf: &seven}, false},
		{volume.Parameters{FSType: "xfs"}, volume.Parameters{FSType: "ext4"}, false},
		{volume.Parameters{DeadTime: 1}, volume.Parameters{}, false},
	}
	for i, tt := range tests {
		if got := tt.a.Equal(tt.b); got != tt.want {
			t.Errorf("row %d: Equal = %v", i, got)
		}
	}
}

func TestRecordShowsConfirmedAdmissionsOnly(t *testing.T) {
	r := volume.Record{Admitted: []volume.Admission{{Node: "n1"}, {Node: "n2", Confirmed: true}}}
	if nodes := r.Volume().Nodes; len(nodes) != 1 || nodes[0] != "n2" {
		t.Errorf("nodes = %v, want n2 only", nodes)
	}
	if r.Admission("n1") == nil || r.Admission("n3") != nil {
		t.Error("Admission finds the wrong nodes")
	}
}

func TestNodeMACs(t *testing.T) {
	n := volume.Node{Interfaces: []volume.Interface{{MAC: "52:54:00:00:00:02"}, {MAC: "52:54:00:00:00:01"}, {}, {MAC: "52:54:00:00:00:02"}}}
	macs := n.MACs()
	if len(macs) != 2 || macs[0] != "52:54:00:00:00:01" || macs[1] != "52:54:00:00:00:02" {
		t.Errorf("MACs = %v", macs)
	}
}
