package shelf

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

const (
	testGen  = "abcdefghijklmn23"
	otherGen = "zzzzzzzzzzzzzz77"
)

func newTarget(t *testing.T) *target.Shelf {
	t.Helper()
	number := uint16(7)
	s, err := target.Open(target.Config{Dir: t.TempDir(), Number: &number})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newClient serves a new shelf on a unix socket and returns a client of it.
func newClient(t *testing.T) shelfv1.ShelfClient {
	t.Helper()
	server := NewServer(newTarget(t), Info{Version: "v1", Segment: "lab", Interfaces: []string{"eth1"}})
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, func(ctx context.Context) error { return Serve(ctx, l, server, nil) })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return shelfv1.NewShelfClient(conn)
}

// serve runs a server until the test ends.
func serve(t *testing.T, l net.Listener, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve on %s: %v", l.Addr(), err)
		}
	})
}

func id(slot uint32, generation string) *shelfv1.LunId {
	return &shelfv1.LunId{Slot: slot, Generation: generation}
}

func admission(node string, macs ...string) *shelfv1.Admission {
	return &shelfv1.Admission{Node: node, Macs: macs}
}

// call is one step of a script against the API.
type call struct {
	name string
	do   func(context.Context, shelfv1.ShelfClient) (*shelfv1.Lun, error)
	want codes.Code
}

func create(name string, slot uint32, generation string, size uint64, want codes.Code) call {
	return call{"create " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		return c.CreateLun(ctx, &shelfv1.CreateLunRequest{Id: id(slot, generation), Name: "pvc-1", SizeBytes: size})
	}, want}
}

func admit(name string, i *shelfv1.LunId, a *shelfv1.Admission, want codes.Code) call {
	return call{"admit " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		return c.Admit(ctx, &shelfv1.AdmitRequest{Id: i, Admission: a})
	}, want}
}

func expel(name string, i *shelfv1.LunId, node string, want codes.Code) call {
	return call{"expel " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		return c.Expel(ctx, &shelfv1.ExpelRequest{Id: i, Node: node})
	}, want}
}

func del(name string, i *shelfv1.LunId, want codes.Code) call {
	return call{"delete " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		_, err := c.DeleteLun(ctx, &shelfv1.DeleteLunRequest{Id: i})
		return nil, err
	}, want}
}

func get(name string, i *shelfv1.LunId, want codes.Code) call {
	return call{"get " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		return c.GetLun(ctx, &shelfv1.GetLunRequest{Id: i})
	}, want}
}

func grow(name string, i *shelfv1.LunId, size uint64, want codes.Code) call {
	return call{"grow " + name, func(ctx context.Context, c shelfv1.ShelfClient) (*shelfv1.Lun, error) {
		return c.GrowLun(ctx, &shelfv1.GrowLunRequest{Id: i, SizeBytes: size})
	}, want}
}

// The codes are what proto/shelf/v1 promises, step by step through a LUN's life.
func TestCodes(t *testing.T) {
	c := newClient(t)
	const mib = 1 << 20
	mac, mac2 := "52:54:00:00:01:02", "52:54:00:00:01:03"
	own := id(3, testGen)
	for _, step := range []call{
		get("before", own, codes.NotFound),
		del("before", own, codes.OK),
		create("size 0", 3, testGen, 0, codes.InvalidArgument),
		create("slot 255", 255, testGen, mib, codes.InvalidArgument),
		create("slot 300", 300, testGen, mib, codes.InvalidArgument),
		create("no generation", 3, "", mib, codes.InvalidArgument),
		create("bad generation", 3, "not base32 at all", mib, codes.InvalidArgument),
		create("without id", 0, "", mib, codes.InvalidArgument),
		create("more than the shelf", 3, testGen, 1<<50, codes.OutOfRange),
		create("more than any disk", 3, testGen, 1<<63, codes.OutOfRange),
		create("", 3, testGen, mib, codes.OK),
		create("again", 3, testGen, mib, codes.OK),
		create("other size", 3, testGen, 2*mib, codes.AlreadyExists),
		create("other generation", 3, otherGen, mib, codes.AlreadyExists),
		create("same generation elsewhere", 4, testGen, mib, codes.AlreadyExists),
		get("", own, codes.OK),
		get("other generation", id(3, otherGen), codes.NotFound),
		get("bad id", id(3, "x"), codes.InvalidArgument),
		admit("bad MAC", own, admission("a", "52:54"), codes.InvalidArgument),
		admit("multicast", own, admission("a", "ff:ff:ff:ff:ff:ff"), codes.InvalidArgument),
		admit("no MAC", own, admission("a"), codes.InvalidArgument),
		admit("no node", own, admission("", mac), codes.InvalidArgument),
		admit("nothing", own, nil, codes.InvalidArgument),
		admit("absent LUN", id(9, testGen), admission("a", mac), codes.NotFound),
		admit("", own, admission("a", mac), codes.OK),
		admit("again", own, admission("a", mac), codes.OK),
		admit("other address", own, admission("a", mac2), codes.OK),
		admit("second node", own, admission("b", mac), codes.FailedPrecondition),
		del("while admitted", own, codes.FailedPrecondition),
		expel("no node", own, "", codes.InvalidArgument),
		expel("absent LUN", id(9, testGen), "a", codes.NotFound),
		expel("other node", own, "b", codes.OK),
		expel("", own, "a", codes.OK),
		expel("again", own, "a", codes.OK),
		grow("", own, 2*mib, codes.OK),
		grow("smaller", own, mib, codes.OK),
		grow("0", own, 0, codes.InvalidArgument),
		grow("more than the shelf", own, 1<<50, codes.OutOfRange),
		grow("absent LUN", id(9, testGen), mib, codes.NotFound),
		del("other generation", id(3, otherGen), codes.OK),
		get("still there", own, codes.OK),
		del("", own, codes.OK),
		del("again", own, codes.OK),
		get("after", own, codes.NotFound),
	} {
		t.Run(step.name, func(t *testing.T) {
			if _, err := step.do(t.Context(), c); status.Code(err) != step.want {
				t.Fatalf("%v, want %v", err, step.want)
			}
		})
	}
}

func TestLunHasEverything(t *testing.T) {
	c := newClient(t)
	ctx := t.Context()
	_, err := c.CreateLun(ctx, &shelfv1.CreateLunRequest{Id: id(3, testGen), Name: "pvc-1", SizeBytes: 4097, Access: shelfv1.Access_ACCESS_OPEN})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Admit(ctx, &shelfv1.AdmitRequest{Id: id(3, testGen), Admission: admission("a", "52:54:00:00:01:02")})
	if err != nil {
		t.Fatal(err)
	}
	if l.GetId().GetSlot() != 3 || l.GetId().GetGeneration() != testGen || l.GetName() != "pvc-1" || l.GetSizeBytes() != 8192 ||
		l.GetAccess() != shelfv1.Access_ACCESS_OPEN || l.GetShelf() != 7 || l.GetUuid() == "" || l.GetCreated().AsTime().IsZero() ||
		len(l.GetAdmitted()) != 1 || l.GetAdmitted()[0].GetNode() != "a" || l.GetAdmitted()[0].GetMacs()[0] != "52:54:00:00:01:02" {
		t.Fatalf("%v", l)
	}
	if _, err := c.CreateLun(ctx, &shelfv1.CreateLunRequest{Id: id(4, otherGen), SizeBytes: 1, Access: 9}); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
}

func TestInfoAndCapacity(t *testing.T) {
	c := newClient(t)
	info, err := c.GetInfo(t.Context(), &shelfv1.GetInfoRequest{})
	if err != nil || info.GetShelf() != 7 || info.GetUuid() == "" || info.GetVersion() != "v1" || info.GetSegment() != "lab" ||
		len(info.GetInterfaces()) != 1 || info.GetMaxSlots() != 255 || !info.GetFences() || !info.GetDurableFlush() {
		t.Fatalf("%v, %v", info, err)
	}
	have, err := c.GetCapacity(t.Context(), &shelfv1.GetCapacityRequest{})
	if err != nil || have.GetFreeSlots() != 255 || have.GetAvailableBytes() == 0 || have.GetMaxLunBytes() == 0 || have.GetTotalBytes() < have.GetAvailableBytes() {
		t.Fatalf("%v, %v", have, err)
	}
	if _, err := create("no room", 0, testGen, have.GetAvailableBytes()/4*3, codes.OK).do(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := create("no room", 1, otherGen, have.GetAvailableBytes()/4*3, codes.OK).do(t.Context(), c); status.Code(err) != codes.ResourceExhausted {
		t.Fatal(err)
	}
}

func TestListLunsInPages(t *testing.T) {
	c := newClient(t)
	for slot := range uint32(5) {
		generation := fmt.Sprintf("aaaaaaaaaaaaaaa%c", 'a'+slot)
		if _, err := create("", slot, generation, 4096, codes.OK).do(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	var slots []uint32
	pages := 0
	for token := ""; pages == 0 || token != ""; pages++ {
		page, err := c.ListLuns(t.Context(), &shelfv1.ListLunsRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range page.GetLuns() {
			slots = append(slots, l.GetId().GetSlot())
		}
		token = page.GetNextPageToken()
	}
	if fmt.Sprint(slots) != "[0 1 2 3 4]" || pages != 3 {
		t.Fatalf("%v in %d pages", slots, pages)
	}
	all, err := c.ListLuns(t.Context(), &shelfv1.ListLunsRequest{PageSize: 1 << 31})
	if err != nil || len(all.GetLuns()) != 5 || all.GetNextPageToken() != "" {
		t.Fatalf("%v, %v", all, err)
	}
	for _, token := range []string{"x", "c2xvdDo", makeToken(255), makeToken(-1)} {
		if _, err := c.ListLuns(t.Context(), &shelfv1.ListLunsRequest{PageToken: token}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

func TestUnixSocketIsForItsOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	if err := os.WriteFile(path, nil, 0o666); err != nil { // what a killed process left
		t.Fatal(err)
	}
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("%v, %v", info, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestPlainTCPIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), l, NewServer(newTarget(t), Info{}), nil); err == nil {
		t.Fatal("served without certificates")
	}
}
