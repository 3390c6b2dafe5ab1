package provision_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// What nodes have in these tests.
var (
	ublk       = volume.Frontend{Name: "ublk", Available: true}
	ublkGrows  = volume.Frontend{Name: "ublk", Available: true, LiveResize: true}
	noUblk     = volume.Frontend{Name: "ublk", Reason: "no /dev/ublk-control"}
	nbd        = volume.Frontend{Name: "nbd", Available: true, LiveResize: true}
	noNBD      = volume.Frontend{Name: "nbd", Reason: "module not found"}
	nbdBefore  = volume.Frontend{Name: "nbd", Available: true} // of an initiator that does not say what grows
	interfaces = []volume.Interface{{Name: "eth1", MAC: "52:54:00:00:00:01"}}
)

func (w *world) nodeTells(n volume.Node) {
	w.t.Helper()
	n.Interfaces = interfaces
	if err := w.store.PutNode(context.Background(), &n); err != nil {
		w.t.Fatal(err)
	}
}

func TestChoiceOfFrontend(t *testing.T) {
	tests := []struct {
		name   string
		wanted string
		online bool
		has    []volume.Frontend
		want   string // empty: refused
		texts  []string
	}{
		{"node that tells nothing", "", false, nil, "auto", []string{"has not told"}},
		{"node that tells nothing, one asked for", "nbd", false, nil, "nbd", nil},
		{"only nbd known", "auto", false, []volume.Frontend{nbd}, "nbd", []string{"not ublk", "does not know it"}},
		{"both", "auto", false, []volume.Frontend{nbd, ublk}, "ublk", []string{"auto"}},
		{"fall back", "auto", false, []volume.Frontend{noUblk, nbd}, "nbd", []string{"auto", "not ublk: no /dev/ublk-control"}},
		{"asked for", "nbd", false, []volume.Frontend{nbd, ublk}, "nbd", []string{"StorageClass"}},
		{"asked for, unknown there", "ublk", false, []volume.Frontend{nbd}, "", []string{"ublk", "modprobe ublk_drv"}},
		{"asked for, not available", "ublk", false, []volume.Frontend{noUblk, nbd}, "", []string{"no /dev/ublk-control", "modprobe ublk_drv"}},
		{"neither", "auto", false, []volume.Frontend{noUblk, noNBD}, "",
			[]string{"ublk: no /dev/ublk-control", "nbd: module not found", "modprobe ublk_drv", "modprobe nbd"}},
		{"grows", "auto", true, []volume.Frontend{ublkGrows, nbd}, "ublk", nil},
		{"only nbd grows", "auto", true, []volume.Frontend{ublk, nbd}, "nbd", []string{"onlineExpansion"}},
		{"nbd that does not say so grows", "auto", true, []volume.Frontend{ublk, nbdBefore}, "nbd", []string{"onlineExpansion"}},
		{"none grows", "auto", true, []volume.Frontend{ublk, noNBD}, "", []string{"onlineExpansion", "module not found", "modprobe nbd"}},
		{"the one asked for does not grow", "ublk", true, []volume.Frontend{ublk, nbd}, "", []string{"onlineExpansion"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, newFakeShelf(7))
			w.nodeTells(volume.Node{Name: "n1", Frontends: tt.has})
			v, err := w.service.Create(context.Background(), volume.CreateRequest{Name: "v",
				Parameters: volume.Parameters{Frontend: tt.wanted, OnlineExpansion: tt.online}})
			if err != nil {
				t.Fatal(err)
			}
			p, err := w.service.Publish(context.Background(), v.ID.String(), "n1", false)
			text := ""
			switch {
			case tt.want == "":
				if !errors.Is(err, volume.ErrPrecondition) {
					t.Fatalf("published: %+v, %v", p, err)
				}
				text = err.Error()
				w.wantAdmitted(v)
			case err != nil || p.Frontend != tt.want:
				t.Fatalf("%+v, %v; want %s", p, err, tt.want)
			default:
				text = p.FrontendReason
				rec, err := w.store.GetVolume(context.Background(), "v")
				if err != nil {
					t.Fatal(err)
				}
				if adm := rec.Admission("n1"); adm.Frontend != p.Frontend || adm.FrontendReason != p.FrontendReason || text == "" {
					t.Errorf("in the record: %+v; published: %+v", adm, p)
				}
			}
			for _, want := range tt.texts {
				if !strings.Contains(text, want) {
					t.Errorf("%q does not say %q", text, want)
				}
			}
		})
	}
}

// TestAChoiceStands: whatever the node has learnt meanwhile, a volume goes on with the front end it has.
func TestAChoiceStands(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	w.nodeTells(volume.Node{Name: "n1", Frontends: []volume.Frontend{noUblk, nbd}})
	v := w.create("v", 4096)
	first := w.publish(v, "n1")
	if first.Frontend != "nbd" {
		t.Fatalf("chosen: %+v", first)
	}
	w.nodeTells(volume.Node{Name: "n1", Frontends: []volume.Frontend{ublk, nbd}})
	if again := w.publish(v, "n1"); !reflect.DeepEqual(again, first) {
		t.Errorf("ublk came, the volume was on nbd: %+v", again)
	}
	device := []volume.Attachment{{VolumeID: v.ID.String(), Device: "/dev/nbd0", Frontend: "nbd"}}
	w.nodeTells(volume.Node{Name: "n1", Frontends: []volume.Frontend{ublk, noNBD}, Attachments: device})
	if again := w.publish(v, "n1"); !reflect.DeepEqual(again, first) {
		t.Errorf("nbd is not available any more, but the device is there: %+v", again)
	}
	w.nodeTells(volume.Node{Name: "n1", Frontends: []volume.Frontend{ublk, noNBD}})
	if again := w.publish(v, "n1"); again.Frontend != "ublk" {
		t.Errorf("nbd is gone, and so is the device: %+v", again)
	}
}
