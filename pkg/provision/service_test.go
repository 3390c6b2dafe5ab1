package provision_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// world is a store, shelves and a service over them.
type world struct {
	t       testing.TB
	steps   *steps
	store   volume.Store
	net     *network
	set     *provision.Shelves
	shelves []*fakeShelf
	service *provision.Service
}

func newWorld(t testing.TB, shelves ...*fakeShelf) *world {
	t.Helper()
	return newWorldOn(t, newFileStore(t), shelves...)
}

func newWorldOn(t testing.TB, store volume.Store, shelves ...*fakeShelf) *world {
	t.Helper()
	w := &world{t: t, steps: &steps{}, store: store, net: newNetwork(), shelves: shelves}
	var addresses []string
	for i, f := range shelves {
		f.steps = w.steps
		path := fmt.Sprintf("/shelf-%d", i)
		w.net.serve(t, path, f, nil)
		addresses = append(addresses, "unix://"+path)
	}
	w.set = provision.NewShelves(provision.ShelvesConfig{
		Sources:     []provision.Source{provision.StaticSource(addresses...)},
		Timeout:     testTimeout,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(w.net.dial)},
	})
	t.Cleanup(func() {
		if err := w.set.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range []string{"n1", "n2"} {
		w.putNode(n, "52:54:00:00:00:0"+n[1:])
	}
	w.restart()
	return w
}

// restart is a new process over the same store.
func (w *world) restart() {
	w.service = provision.NewService(provision.Config{Store: faultyStore{w.store, w.steps}, Shelves: w.set})
}

func (w *world) putNode(name, mac string) {
	w.t.Helper()
	err := w.store.PutNode(context.Background(), &volume.Node{Name: name, Interfaces: []volume.Interface{{Name: "eth1", MAC: mac, Up: true}}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create(name string, size int64) *volume.Volume {
	w.t.Helper()
	v, err := w.service.Create(context.Background(), volume.CreateRequest{Name: name, RequiredBytes: size})
	if err != nil {
		w.t.Fatalf("create %s: %v", name, err)
	}
	return v
}

// objects counts what there is: records, slots, LUNs.
func (w *world) objects() (records, slots, luns int) {
	w.t.Helper()
	rs, err := w.store.ListVolumes(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	ss, err := w.store.ListSlots(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range w.shelves {
		n, _ := f.count("")
		luns += n
	}
	return len(rs), len(ss), luns
}

func (w *world) wantObjects(n int) {
	w.t.Helper()
	if records, slots, luns := w.objects(); records != n || slots != n || luns != n {
		w.t.Errorf("%d records, %d slots, %d LUNs; want %d of each", records, slots, luns, n)
	}
}

func TestCreateGetDelete(t *testing.T) {
	w := newWorld(t, newFakeShelf(7))
	ctx := context.Background()
	v := w.create("pvc-1", 1<<20)
	if v.ID.Addr.String() != "e7.0" || v.SizeBytes != 1<<20 || v.Segment != "default" {
		t.Errorf("created %+v", v)
	}
	got, err := w.service.Get(ctx, v.ID.String())
	if err != nil || got.ID != v.ID {
		t.Errorf("Get = %+v, %v", got, err)
	}
	if again := w.create("pvc-1", 1<<20); again.ID != v.ID {
		t.Errorf("created again as %s, was %s", again.ID, v.ID)
	}
	w.wantObjects(1)
	if lun := w.shelves[0].lun(string(v.ID.Generation)); lun == nil || lun.Name != "pvc-1" || len(lun.Admitted) != 0 {
		t.Errorf("LUN = %v", lun)
	}
	for range 2 {
		if err := w.service.Delete(ctx, v.ID.String()); err != nil {
			t.Fatal(err)
		}
	}
	w.wantObjects(0)
	if _, err := w.service.Get(ctx, v.ID.String()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Get of a deleted volume: %v", err)
	}
	if next := w.create("pvc-2", 1<<20); next.ID.Addr != v.ID.Addr || next.ID.Generation == v.ID.Generation {
		t.Errorf("reused slot: %s after %s", next.ID, v.ID)
	}
}

func TestCreateRefuses(t *testing.T) {
	seven, nine := uint16(7), uint16(9)
	tests := []struct {
		name string
		req  volume.CreateRequest
		want error
		text string
	}{
		{"negative size", volume.CreateRequest{RequiredBytes: -1}, volume.ErrInvalid, "negative"},
		{"limit below required", volume.CreateRequest{RequiredBytes: 8192, LimitBytes: 4096}, volume.ErrInvalid, "limit"},
		{"limit below a page", volume.CreateRequest{LimitBytes: 1}, volume.ErrOutOfRange, "4096"},
		{"larger than any shelf", volume.CreateRequest{RequiredBytes: 101 << 30}, volume.ErrOutOfRange, "shelf 7 has 100 GiB in all"},
		{"larger than what is free", volume.CreateRequest{RequiredBytes: 95 << 30}, volume.ErrNoSpace, "shelf 7 makes volumes of at most 90 GiB"},
		{"larger than any disk", volume.CreateRequest{RequiredBytes: 1<<62 + 1}, volume.ErrOutOfRange, "ATA"},
		{"a shelf that is not there", volume.CreateRequest{Parameters: volume.Parameters{Shelf: &nine}}, volume.ErrUnavailable, "shelf 9 is not known"},
		{"the shelf asked for is too small", volume.CreateRequest{RequiredBytes: 101 << 30, Parameters: volume.Parameters{Shelf: &seven}}, volume.ErrOutOfRange, "shelf 7"},
		{"another segment", volume.CreateRequest{Segments: []string{"b", "c"}}, volume.ErrNoSpace, `shelf 7 is on segment "default", not on b or c`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, newFakeShelf(7))
			w.create("other", 10<<30)
			tt.req.Name = "pvc-1"
			_, err := w.service.Create(context.Background(), tt.req)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
			w.wantObjects(1)
		})
	}
}

func TestCreateWithTheSameName(t *testing.T) {
	seven := uint16(7)
	tests := []struct {
		name string
		req  volume.CreateRequest
		want error
	}{
		{"the same", volume.CreateRequest{RequiredBytes: 1 << 20}, nil},
		{"no size", volume.CreateRequest{}, nil},
		{"a range around it", volume.CreateRequest{RequiredBytes: 4096, LimitBytes: 1 << 30}, nil},
		{"larger", volume.CreateRequest{RequiredBytes: 2 << 20}, volume.ErrConflict},
		{"limit below", volume.CreateRequest{RequiredBytes: 4096, LimitBytes: 8192}, volume.ErrConflict},
		{"other file system", volume.CreateRequest{RequiredBytes: 1 << 20, Parameters: volume.Parameters{FSType: "xfs"}}, volume.ErrConflict},
		{"a shelf", volume.CreateRequest{RequiredBytes: 1 << 20, Parameters: volume.Parameters{Shelf: &seven}}, volume.ErrConflict},
		{"its segment", volume.CreateRequest{RequiredBytes: 1 << 20, Segments: []string{"x", "default"}}, nil},
		{"other segment", volume.CreateRequest{RequiredBytes: 1 << 20, Segments: []string{"x"}}, volume.ErrConflict},
	}
	w := newWorld(t, newFakeShelf(7))
	v := w.create("pvc-1", 1<<20)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Name = "pvc-1"
			got, err := w.service.Create(context.Background(), tt.req)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err == nil && got.ID != v.ID {
				t.Errorf("made another volume: %s", got.ID)
			}
			w.wantObjects(1)
		})
	}
}

func TestChoiceOfShelf(t *testing.T) {
	small, large, other := newFakeShelf(1), newFakeShelf(2), newFakeShelf(3)
	small.size, large.size, other.size, other.segment = 10<<30, 20<<30, 30<<30, "b"
	small.labels, large.labels = map[string]string{"tier": "ssd", "rack": "1"}, map[string]string{"tier": "ssd"}
	one := uint16(1)
	tests := []struct {
		name string
		req  volume.CreateRequest
		want uint16
	}{
		{"most free space", volume.CreateRequest{}, 3},
		{"most free space of the segment", volume.CreateRequest{Segments: []string{"default"}}, 2},
		{"the one asked for", volume.CreateRequest{Parameters: volume.Parameters{Shelf: &one}}, 1},
		{"by label", volume.CreateRequest{Parameters: volume.Parameters{ShelfSelector: "tier=ssd"}}, 2},
		{"by labels", volume.CreateRequest{Parameters: volume.Parameters{ShelfSelector: "rack=1,tier=ssd"}}, 1},
		{"by the absence of a label", volume.CreateRequest{Parameters: volume.Parameters{ShelfSelector: "!tier"}}, 3},
		{"several segments", volume.CreateRequest{Segments: []string{"b", "default"}}, 3},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, small, large, other)
			tt.req.Name, tt.req.RequiredBytes = fmt.Sprint("v", i), 4096
			v, err := w.service.Create(context.Background(), tt.req)
			if err != nil || v.ID.Addr.Shelf != tt.want {
				t.Errorf("shelf %v, %v; want %d", v, err, tt.want)
			}
		})
	}
}

// TestChoiceAmongLUNs that several shelves have: the smallest that fits, of all of them.
func TestChoiceAmongLUNs(t *testing.T) {
	one, two, others := newFakeShelf(1), newFakeShelf(2), newFakeShelf(3)
	one.labels, two.labels = map[string]string{"pool": "a"}, map[string]string{"pool": "a"}
	one.offers = []*shelfv1.Offer{{Slot: 0, SizeBytes: 8 << 20}, {Slot: 1, SizeBytes: 1 << 20}}
	two.offers = []*shelfv1.Offer{{Slot: 5, SizeBytes: 4 << 20}, {Slot: 6, SizeBytes: 4 << 20, Refused: "is not blank"}}
	others.offers = []*shelfv1.Offer{{Slot: 0, SizeBytes: 4 << 20}}
	w := newWorld(t, one, two, others)
	create := func(name, selector string) (*volume.Volume, error) {
		return w.service.Create(t.Context(), volume.CreateRequest{
			Name: name, RequiredBytes: 2 << 20, Parameters: volume.Parameters{ShelfSelector: selector}})
	}
	if v, err := create("first", "pool=a"); err != nil || v.ID.Addr.String() != "e2.5" {
		t.Fatalf("first: %v, %v", v, err)
	}
	if v, err := create("second", "pool=a"); err != nil || v.ID.Addr.String() != "e1.0" {
		t.Fatalf("second: %v, %v", v, err)
	}
	_, err := create("third", "pool=a")
	if !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("third: %v", err)
	}
	for _, part := range []string{"shelves 1, 2", "e1.1 has 1 MiB only", "e2.6 is not blank", "e2.5 belongs to volume first", "e1.0 belongs to volume second"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	// A shelf that takes none says why, and may take one later.
	one.setFull(true)
	two.setOffers(&shelfv1.Offer{Slot: 6, SizeBytes: 1 << 20})
	one.setOffers(&shelfv1.Offer{Slot: 7, SizeBytes: 8 << 20})
	if _, err := create("third", "pool=a"); !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "create LUN e1.7: no shelf has room") {
		t.Errorf("while one takes none: %v", err)
	}
	// A LUN that says nothing may be it.
	one.setFull(false)
	one.setOffers(&shelfv1.Offer{Slot: 7, Refused: "e1.7 does not answer"})
	if _, err := create("third", "pool=a"); !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), ": e1.7 does not answer") {
		t.Errorf("while a LUN is silent: %v", err)
	}
	// What a label is not, names no shelf: there is nothing of its own to be taken.
	others.labels = map[string]string{"pool": "b"}
	if _, err := create("third", "pool!=a"); err == nil || !strings.Contains(err.Error(), "LUNs of its own") {
		t.Errorf("by what it is not: %v", err)
	}
	// So may a shelf.
	one.setDown(true)
	if _, err := create("third", "pool=a"); !errors.Is(err, volume.ErrUnavailable) || !strings.Contains(err.Error(), "shelf 1") {
		t.Errorf("while one is silent: %v", err)
	}
	if _, err := create("third", "pool=c"); !errors.Is(err, volume.ErrUnavailable) || !strings.Contains(err.Error(), "no shelf with pool=c is known") {
		t.Errorf("labels that no shelf has: %v", err)
	}
}

// TestTooLargeForAShelf that is asked for by number, for good, whoever else is silent; by labels another one may come.
func TestTooLargeForAShelf(t *testing.T) {
	one, silent := newFakeShelf(1), newFakeShelf(2)
	one.labels = map[string]string{"pool": "a"}
	one.offers = []*shelfv1.Offer{{Slot: 0, SizeBytes: 1 << 20}}
	silent.setDown(true)
	number := uint16(1)
	for p, want := range map[*volume.Parameters]error{
		{Shelf: &number}:          volume.ErrOutOfRange,
		{ShelfSelector: "pool=a"}: volume.ErrUnavailable, // the silent one has not said what it is
	} {
		w := newWorld(t, one, silent)
		if _, err := w.service.Create(t.Context(), volume.CreateRequest{Name: "large", RequiredBytes: 2 << 20, Parameters: *p}); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", *p, err, want)
		}
	}
	w := newWorld(t, one)
	if _, err := w.service.Create(t.Context(), volume.CreateRequest{Name: "large", RequiredBytes: 2 << 20, Parameters: volume.Parameters{ShelfSelector: "pool=a"}}); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("alone: %v", err)
	}
}

func TestARefusedIntentMovesOn(t *testing.T) {
	large, small := newFakeShelf(1), newFakeShelf(2)
	small.size = 50 << 30
	w := newWorld(t, large, small)
	large.setFull(true)
	if v := w.create("pvc-1", 1<<20); v.ID.Addr.Shelf != 2 {
		t.Errorf("made on shelf %d", v.ID.Addr.Shelf)
	}
	w.wantObjects(1)
	small.setFull(true)
	_, err := w.service.Create(context.Background(), volume.CreateRequest{Name: "pvc-2", RequiredBytes: 4096})
	if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("all full: %v", err)
	}
	w.wantObjects(1)
}

func TestSlotTakenByHand(t *testing.T) {
	for _, shy := range []bool{false, true} {
		t.Run(fmt.Sprintf("not listed %t", shy), func(t *testing.T) {
			f := newFakeShelf(7)
			w := newWorld(t, f)
			for slot := range uint32(3) {
				f.luns[slot] = &shelfv1.Lun{Id: &shelfv1.LunId{Slot: slot, Generation: "byhandbyhandbyha"}}
			}
			f.setShy(shy)
			if v := w.create("pvc-1", 4096); v.ID.Addr.Slot != 3 {
				t.Errorf("made at %s, slots 0 to 2 are taken", v.ID.Addr)
			}
			if records, slots, luns := w.objects(); records != 1 || slots != 1 || luns != 4 {
				t.Errorf("%d records, %d slots, %d LUNs", records, slots, luns)
			}
		})
	}
}

func TestShelfWithEverySlotTaken(t *testing.T) {
	f := newFakeShelf(7)
	w := newWorld(t, f)
	for slot := range uint32(255) {
		f.luns[slot] = &shelfv1.Lun{Id: &shelfv1.LunId{Slot: slot, Generation: "byhandbyhandbyha"}}
	}
	_, err := w.service.Create(context.Background(), volume.CreateRequest{Name: "pvc-1"})
	if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "no free slot") {
		t.Errorf("error %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, newFakeShelf(7), newFakeShelf(8))
	const n = 40
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := w.service.Create(context.Background(), volume.CreateRequest{Name: fmt.Sprintf("pvc-%d", i), RequiredBytes: 4096})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	w.wantObjects(n)
}
