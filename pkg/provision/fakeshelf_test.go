package provision_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
)

// fakeShelf is the shelf API over memory, as proto/shelf/v1 describes it.
type fakeShelf struct {
	shelfv1.UnimplementedShelfServer
	number  uint32
	uuid    string
	segment string
	size    uint64 // bytes in all
	labels  map[string]string
	offers  []*shelfv1.Offer // LUNs of its own; nil: it makes them
	steps   *steps           // faults; may be nil
	admit   func()           // called before an Admit is done; may be nil

	mu    sync.Mutex
	luns  map[uint32]*shelfv1.Lun
	calls []string
	down  bool // nobody answers
	full  bool // RESOURCE_EXHAUSTED, whatever GetCapacity said
	shy   bool // ListLuns shows nothing
}

func newFakeShelf(number uint32) *fakeShelf {
	return &fakeShelf{number: number, uuid: fmt.Sprintf("uuid-%d", number), segment: "default", size: 100 << 30, luns: map[uint32]*shelfv1.Lun{}}
}

// network answers for the fake shelves by address.
type network struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
}

func newNetwork() *network { return &network{listeners: map[string]*bufconn.Listener{}} }

// serve puts a shelf at an address, host:port or a path, until the test ends.
func (n *network) serve(t testing.TB, address string, f *fakeShelf, creds credentials.TransportCredentials) {
	t.Helper()
	var options []grpc.ServerOption
	if creds != nil {
		options = append(options, grpc.Creds(creds))
	}
	options = append(options, grpc.UnaryInterceptor(f.intercept))
	server := grpc.NewServer(options...)
	shelfv1.RegisterShelfServer(server, f)
	l := bufconn.Listen(1 << 16)
	n.mu.Lock()
	n.listeners[address] = l
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { server.Stop(); <-done })
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[strings.TrimPrefix(address, "unix://")]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("connection to %s refused", address)
	}
	return l.DialContext(ctx)
}

// intercept counts the call, and fails it before or after it took place.
func (f *fakeShelf) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	f.mu.Lock()
	f.calls = append(f.calls, method)
	down := f.down
	f.mu.Unlock()
	if down {
		return nil, status.Error(codes.Unavailable, "down")
	}
	var resp any
	err := f.steps.do(fmt.Sprintf("shelf%d.%s", f.number, method), func() (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if errors.Is(err, errFault) {
		return nil, status.Error(codes.Unavailable, "answer lost")
	}
	return resp, err
}

func (f *fakeShelf) setDown(down bool) { f.mu.Lock(); f.down = down; f.mu.Unlock() }
func (f *fakeShelf) setShy(shy bool)   { f.mu.Lock(); f.shy = shy; f.mu.Unlock() }
func (f *fakeShelf) setOffers(offers ...*shelfv1.Offer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offers = offers
}

func (f *fakeShelf) setFull(full bool) { f.mu.Lock(); f.full = full; f.mu.Unlock() }

// count returns how many LUNs there are, and calls of a method were made.
func (f *fakeShelf) count(method string) (luns, calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == method {
			calls++
		}
	}
	return len(f.luns), calls
}

// lun returns the LUN with this identity, nil if there is none.
func (f *fakeShelf) lun(generation string) *shelfv1.Lun {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.luns {
		if l.Id.Generation == generation {
			return l
		}
	}
	return nil
}

func (f *fakeShelf) free() uint64 {
	free := f.size
	for _, l := range f.luns {
		free -= l.SizeBytes
	}
	return free
}

func (f *fakeShelf) GetInfo(context.Context, *shelfv1.GetInfoRequest) (*shelfv1.GetInfoResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &shelfv1.GetInfoResponse{Shelf: f.number, Uuid: f.uuid, Segment: f.segment, MaxSlots: 255, Fences: true, Labels: f.labels}, nil
}

func (f *fakeShelf) GetCapacity(context.Context, *shelfv1.GetCapacityRequest) (*shelfv1.GetCapacityResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &shelfv1.GetCapacityResponse{TotalBytes: f.size, AvailableBytes: f.free(), MaxLunBytes: f.free(), FreeSlots: uint32(255 - len(f.luns)),
		Fixed: f.offers != nil, Offers: f.offers}, nil
}

func (f *fakeShelf) CreateLun(_ context.Context, r *shelfv1.CreateLunRequest) (*shelfv1.Lun, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.luns[r.Id.Slot]; l != nil {
		if l.Id.Generation != r.Id.Generation || l.SizeBytes != r.SizeBytes {
			return nil, status.Errorf(codes.AlreadyExists, "slot %d has generation %s", r.Id.Slot, l.Id.Generation)
		}
		return l, nil
	}
	switch {
	case r.SizeBytes > f.size:
		return nil, status.Error(codes.OutOfRange, "larger than the shelf")
	case f.full || r.SizeBytes > f.free():
		return nil, status.Error(codes.ResourceExhausted, "no room")
	}
	l := &shelfv1.Lun{Id: r.Id, Name: r.Name, SizeBytes: r.SizeBytes, Access: r.Access, Shelf: f.number}
	f.luns[r.Id.Slot] = l
	return l, nil
}

// find returns the LUN; the caller holds mu.
func (f *fakeShelf) find(id *shelfv1.LunId) (*shelfv1.Lun, error) {
	l := f.luns[id.Slot]
	if l == nil || l.Id.Generation != id.Generation {
		return nil, status.Errorf(codes.NotFound, "no LUN %s in slot %d", id.Generation, id.Slot)
	}
	return l, nil
}

func (f *fakeShelf) DeleteLun(_ context.Context, r *shelfv1.DeleteLunRequest) (*shelfv1.DeleteLunResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, err := f.find(r.Id); err == nil {
		if len(l.Admitted) > 0 {
			return nil, status.Errorf(codes.FailedPrecondition, "node %s is admitted", l.Admitted[0].Node)
		}
		delete(f.luns, r.Id.Slot)
	}
	return &shelfv1.DeleteLunResponse{}, nil
}

func (f *fakeShelf) GetLun(_ context.Context, r *shelfv1.GetLunRequest) (*shelfv1.Lun, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(r.Id)
}

func (f *fakeShelf) ListLuns(context.Context, *shelfv1.ListLunsRequest) (*shelfv1.ListLunsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &shelfv1.ListLunsResponse{}
	for _, l := range f.luns {
		if !f.shy {
			r.Luns = append(r.Luns, l)
		}
	}
	return r, nil
}

func (f *fakeShelf) GrowLun(_ context.Context, r *shelfv1.GrowLunRequest) (*shelfv1.Lun, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.find(r.Id)
	switch {
	case err != nil:
		return nil, err
	case r.SizeBytes <= l.SizeBytes:
	case r.SizeBytes > f.size:
		return nil, status.Error(codes.OutOfRange, "larger than the shelf")
	case f.full || r.SizeBytes-l.SizeBytes > f.free():
		return nil, status.Error(codes.ResourceExhausted, "no room")
	default:
		l.SizeBytes = r.SizeBytes
	}
	return l, nil
}

func (f *fakeShelf) Admit(_ context.Context, r *shelfv1.AdmitRequest) (*shelfv1.Lun, error) {
	if f.admit != nil {
		f.admit()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.find(r.Id)
	if err != nil {
		return nil, err
	}
	if len(l.Admitted) > 0 && l.Admitted[0].Node != r.Admission.Node {
		return nil, status.Errorf(codes.FailedPrecondition, "node %s is admitted", l.Admitted[0].Node)
	}
	l.Admitted = []*shelfv1.Admission{r.Admission}
	return l, nil
}

func (f *fakeShelf) Expel(_ context.Context, r *shelfv1.ExpelRequest) (*shelfv1.Lun, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.find(r.Id)
	if err != nil {
		return nil, err
	}
	l.Admitted = slices.DeleteFunc(l.Admitted, func(a *shelfv1.Admission) bool { return a.Node == r.Node })
	return l, nil
}

// admitted returns the nodes that the shelf serves on the LUN.
func (f *fakeShelf) admitted(generation string) []string {
	l := f.lun(generation)
	f.mu.Lock()
	defer f.mu.Unlock()
	var nodes []string
	for _, a := range l.GetAdmitted() {
		nodes = append(nodes, a.Node)
	}
	return nodes
}

// testTimeout is the deadline of calls to shelves in tests: long enough for a slow machine.
const testTimeout = 5 * time.Second
