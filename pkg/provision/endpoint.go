package provision

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
)

// endpoint is an address at which a shelf is, or was. What it last said of itself is kept
// under Shelves.mu.
type endpoint struct {
	address string
	timeout time.Duration // of each call
	conn    *grpc.ClientConn
	client  shelfv1.ShelfClient

	last *ShelfInfo // nil: it never answered
}

// ParseAddress checks a shelf's address, tcp://host:port or unix:///path.
func ParseAddress(address string) error {
	_, _, err := splitAddress(address)
	return err
}

// splitAddress returns gRPC's target for the address and whether it is a unix socket.
func splitAddress(address string) (target string, local bool, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", false, fmt.Errorf("shelf address %q: %w", address, err)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return "unix://" + u.Path, true, nil
	case u.Scheme == "tcp" && u.Path == "":
		if _, port, err := net.SplitHostPort(u.Host); err == nil && port != "" && u.Hostname() != "" {
			return "dns:///" + u.Host, false, nil
		}
	}
	return "", false, fmt.Errorf("shelf address %q: want tcp://host:port or unix:///path", address)
}

// newEndpoint prepares a connection; nothing is sent yet. creds may be nil for a unix
// socket only: shelves are never spoken to in the clear over a network.
func newEndpoint(address string, creds credentials.TransportCredentials, timeout time.Duration, extra []grpc.DialOption) (*endpoint, error) {
	target, local, err := splitAddress(address)
	if err != nil {
		return nil, err
	}
	if local {
		creds = insecure.NewCredentials()
	}
	if creds == nil {
		return nil, fmt.Errorf("shelf address %q: no client certificate, and a network is never used in the clear", address)
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		// A shelf that restarts is back within seconds: gRPC's own pauses of up to 2 min would be most of the outage.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig(),
	}, extra...)
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("shelf address %q: %w", address, err)
	}
	return &endpoint{address: address, timeout: timeout, conn: conn, client: shelfv1.NewShelfClient(conn)}, nil
}

// info asks who is there.
func (e *endpoint) info(ctx context.Context) (*ShelfInfo, error) {
	anyone := &Shelf{end: e}
	r, err := call(ctx, anyone, "", e.client.GetInfo, &shelfv1.GetInfoRequest{})
	if err != nil {
		return nil, err
	}
	if r.GetShelf() > uint32(aoe.MaxShelf) {
		return nil, anyone.fail("", fmt.Errorf("says it is shelf %d, which AoE does not have", r.GetShelf()))
	}
	if r.GetUuid() == "" {
		return nil, anyone.fail("", errors.New("says no UUID"))
	}
	return &ShelfInfo{Number: uint16(r.GetShelf()), UUID: r.GetUuid(), Segment: r.GetSegment(), Version: r.GetVersion(), Labels: r.GetLabels()}, nil
}

// capacity asks what room there is.
func (s *Shelf) capacity(ctx context.Context) (ShelfCapacity, error) {
	r, err := call(ctx, s, "get capacity", s.end.client.GetCapacity, &shelfv1.GetCapacityRequest{})
	if err != nil {
		return ShelfCapacity{}, err
	}
	var offers []Offer
	for _, o := range r.GetOffers() {
		if o.GetSlot() < uint32(slotsPerShelf) {
			offers = append(offers, Offer{Slot: uint8(o.GetSlot()), Bytes: clamp(o.GetSizeBytes()), Refused: o.GetRefused(), Data: o.GetData()})
		}
	}
	return ShelfCapacity{
		Fixed: r.GetFixed(), Offers: offers,
		TotalBytes:     clamp(r.GetTotalBytes()),
		AvailableBytes: clamp(r.GetAvailableBytes()),
		MaxLunBytes:    clamp(r.GetMaxLunBytes()),
		FreeSlots:      int(r.GetFreeSlots()),
	}, nil
}

func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// call makes one call with the endpoint's deadline and says in the error which shelf it
// was and what a caller can decide on.
func call[Req, Resp any](ctx context.Context, s *Shelf, op string, f func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, s.end.timeout)
	defer cancel()
	resp, err := f(ctx, req)
	if err == nil {
		return resp, nil
	}
	sentinel, cause := sentinelOf(err)
	failure := &ShelfError{Op: op, Shelf: "shelf", Address: s.end.address, Sentinel: sentinel, Err: cause}
	if s.Info.UUID != "" {
		failure.Shelf = fmt.Sprintf("shelf %d", s.Info.Number)
	}
	return resp, failure
}
