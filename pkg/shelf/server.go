package shelf

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/target"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const (
	maxSlots = int(aoe.MaxSlot) + 1
	// pageSize is the server's choice, and the most: a whole shelf.
	pageSize = maxSlots
)

// Info is what GetInfo tells beside what the target knows.
type Info struct {
	Version    string // of the software
	Segment    string // value of topology.aoe-csi.io/segment
	Interfaces []string
	MACs       []string          // of these
	Labels     map[string]string // by which a StorageClass selects the shelf
	// Allocations counts the objects that the process has allocated; nil: not told.
	Allocations func() uint64
}

// Server implements the shelf API over a target.
type Server struct {
	shelfv1.UnimplementedShelfServer

	target *target.Shelf
	info   Info
}

// NewServer borrows the target.
func NewServer(t *target.Shelf, info Info) *Server { return &Server{target: t, info: info} }

// GetInfo implements the API.
func (s *Server) GetInfo(context.Context, *shelfv1.GetInfoRequest) (*shelfv1.GetInfoResponse, error) {
	info := &shelfv1.GetInfoResponse{
		Shelf: uint32(s.target.Number()), Uuid: s.target.UUID(), Version: s.info.Version, Segment: s.info.Segment,
		Interfaces: s.info.Interfaces, MaxSlots: uint32(maxSlots), Fences: true, DurableFlush: true, Labels: s.info.Labels,
	}
	if s.info.Allocations != nil {
		info.HeapAllocations = s.info.Allocations()
	}
	return info, nil
}

// CreateLun implements the API.
func (s *Server) CreateLun(ctx context.Context, r *shelfv1.CreateLunRequest) (*shelfv1.Lun, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	if r.GetSizeBytes() == 0 {
		return nil, status.Error(codes.InvalidArgument, "size_bytes is 0")
	}
	size, err := bytesOf(r.GetSizeBytes())
	if err != nil {
		return nil, err
	}
	access := target.ManagedAccess
	switch r.GetAccess() {
	case shelfv1.Access_ACCESS_UNSPECIFIED, shelfv1.Access_ACCESS_MANAGED:
	case shelfv1.Access_ACCESS_OPEN:
		access = target.OpenAccess
	default:
		return nil, status.Errorf(codes.InvalidArgument, "unknown access %d", r.GetAccess())
	}
	return s.answer(s.target.Create(ctx, target.CreateRequest{
		Slot: slot, Generation: generation, Name: r.GetName(), SizeBytes: size, Access: access,
	}))
}

// DeleteLun implements the API.
func (s *Server) DeleteLun(ctx context.Context, r *shelfv1.DeleteLunRequest) (*shelfv1.DeleteLunResponse, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	if err := s.target.Delete(ctx, slot, generation); err != nil {
		return nil, statusOf(err)
	}
	return &shelfv1.DeleteLunResponse{}, nil
}

// GetLun implements the API.
func (s *Server) GetLun(_ context.Context, r *shelfv1.GetLunRequest) (*shelfv1.Lun, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	return s.answer(s.target.Get(slot, generation))
}

// ListLuns implements the API.
func (s *Server) ListLuns(_ context.Context, r *shelfv1.ListLunsRequest) (*shelfv1.ListLunsResponse, error) {
	from, err := parseToken(r.GetPageToken())
	if err != nil {
		return nil, err
	}
	limit := int(min(r.GetPageSize(), uint32(pageSize)))
	if limit == 0 {
		limit = pageSize
	}
	luns, next, err := s.target.List(from, limit)
	if err != nil {
		return nil, statusOf(err)
	}
	answer := &shelfv1.ListLunsResponse{Luns: make([]*shelfv1.Lun, len(luns))}
	for i := range luns {
		answer.Luns[i] = s.lun(&luns[i])
	}
	if next >= 0 {
		answer.NextPageToken = makeToken(next)
	}
	return answer, nil
}

// tokenPrefix keeps tokens opaque and recognisable.
const tokenPrefix = "slot:"

func makeToken(slot int) string {
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt([]byte(tokenPrefix), int64(slot), 10))
}

func parseToken(token string) (slot int, err error) {
	if token == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil && len(b) > len(tokenPrefix) && string(b[:len(tokenPrefix)]) == tokenPrefix {
		slot, err = strconv.Atoi(string(b[len(tokenPrefix):]))
		if err == nil && slot >= 0 && slot < maxSlots {
			return slot, nil
		}
	}
	return 0, status.Errorf(codes.InvalidArgument, "page token %q is not one of this shelf's", token)
}

// GetCapacity implements the API.
func (s *Server) GetCapacity(context.Context, *shelfv1.GetCapacityRequest) (*shelfv1.GetCapacityResponse, error) {
	c, err := s.target.Capacity()
	if err != nil {
		return nil, statusOf(err)
	}
	return &shelfv1.GetCapacityResponse{
		TotalBytes: uint64(c.TotalBytes), AvailableBytes: uint64(c.AvailableBytes), MaxLunBytes: uint64(c.MaxLUNBytes),
		FreeSlots: uint32(c.FreeSlots),
	}, nil
}

// Admit implements the API.
func (s *Server) Admit(ctx context.Context, r *shelfv1.AdmitRequest) (*shelfv1.Lun, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	a := target.Admission{Node: r.GetAdmission().GetNode()}
	for _, text := range r.GetAdmission().GetMacs() {
		mac, err := aoe.ParseMAC(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		a.MACs = append(a.MACs, mac)
	}
	return s.answer(s.target.Admit(ctx, slot, generation, a))
}

// Expel implements the API.
func (s *Server) Expel(ctx context.Context, r *shelfv1.ExpelRequest) (*shelfv1.Lun, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	if r.GetNode() == "" {
		return nil, status.Error(codes.InvalidArgument, "node is empty")
	}
	return s.answer(s.target.Expel(ctx, slot, generation, r.GetNode()))
}

// GrowLun implements the API.
func (s *Server) GrowLun(_ context.Context, r *shelfv1.GrowLunRequest) (*shelfv1.Lun, error) {
	slot, generation, err := lunID(r.GetId())
	if err != nil {
		return nil, err
	}
	size, err := bytesOf(r.GetSizeBytes())
	if err != nil {
		return nil, err
	}
	return s.answer(s.target.Grow(slot, generation, size))
}

// lunID checks what names a LUN.
func lunID(id *shelfv1.LunId) (slot uint8, generation string, err error) {
	if id.GetSlot() > uint32(aoe.MaxSlot) {
		return 0, "", status.Errorf(codes.InvalidArgument, "slot %d, the largest is %d", id.GetSlot(), aoe.MaxSlot)
	}
	g, err := volume.ParseGeneration(id.GetGeneration())
	if err != nil {
		return 0, "", status.Error(codes.InvalidArgument, err.Error())
	}
	return uint8(id.GetSlot()), string(g), nil
}

// maxBytes keeps sizes, rounded up, within what a file offset can say.
const maxBytes = 1 << 62

func bytesOf(n uint64) (int64, error) {
	if n > maxBytes {
		return 0, status.Errorf(codes.OutOfRange, "%d bytes is more than any disk", n)
	}
	return int64(n), nil
}

// answer is the API's view of a LUN, or of an error.
func (s *Server) answer(l target.LUN, err error) (*shelfv1.Lun, error) {
	if err != nil {
		return nil, statusOf(err)
	}
	return s.lun(&l), nil
}

func (s *Server) lun(l *target.LUN) *shelfv1.Lun {
	answer := &shelfv1.Lun{
		Id:   &shelfv1.LunId{Slot: uint32(l.Slot), Generation: l.Generation},
		Uuid: l.UUID, Name: l.Name, SizeBytes: uint64(l.SizeBytes), AllocatedBytes: uint64(l.AllocatedBytes),
		Access: shelfv1.Access_ACCESS_MANAGED, Created: timestamppb.New(l.Created), Shelf: uint32(s.target.Number()), Macs: s.info.MACs,
	}
	if l.Access == target.OpenAccess {
		answer.Access = shelfv1.Access_ACCESS_OPEN
	}
	for _, a := range l.Admitted {
		admission := &shelfv1.Admission{Node: a.Node}
		for _, mac := range a.MACs {
			admission.Macs = append(admission.Macs, mac.String())
		}
		answer.Admitted = append(answer.Admitted, admission)
	}
	return answer
}

// codesOf maps the target's sentinels, as proto/shelf/v1 promises them.
var codesOf = []struct {
	err  error
	code codes.Code
}{
	{target.ErrInvalid, codes.InvalidArgument},
	{target.ErrNotFound, codes.NotFound},
	{target.ErrExists, codes.AlreadyExists},
	{target.ErrTooLarge, codes.OutOfRange},
	{target.ErrNoSpace, codes.ResourceExhausted},
	{target.ErrAdmitted, codes.FailedPrecondition},
	{target.ErrBusy, codes.Aborted},
	{target.ErrClosed, codes.Unavailable},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// statusOf gives an error its code.
func statusOf(err error) error {
	for _, c := range codesOf {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}
