package attach

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// watchPause keeps a target that comes and goes from flooding watchers.
	watchPause = 200 * time.Millisecond
	// maxDiscoverWait bounds what a call can ask for.
	maxDiscoverWait = time.Minute
)

// Discoverer asks who is on the wire; inband.Discover.
type Discoverer func(context.Context, inband.Config, inband.ScanConfig) ([]inband.Answer, error)

// Server is the initiator's API over a Manager.
type Server struct {
	initiatorv1.UnimplementedInitiatorServer
	manager  *Manager
	discover Discoverer
	version  string
	// Allocations counts the objects that the process has allocated; nil: not told. Set before Serve.
	Allocations func() uint64
}

// NewServer returns the API; version is what GetNode tells.
func NewServer(m *Manager, d Discoverer, version string) *Server {
	return &Server{manager: m, discover: d, version: version}
}

// Attach implements initiatorv1.InitiatorServer.
func (s *Server) Attach(ctx context.Context, r *initiatorv1.AttachRequest) (*initiatorv1.Attachment, error) {
	target, err := address(r.GetTarget())
	if err != nil {
		return nil, err
	}
	if r.GetTimeout().AsDuration() < 0 {
		return nil, status.Error(codes.InvalidArgument, "timeout is negative")
	}
	macs := make([]aoe.MAC, len(r.GetMacs()))
	for i, text := range r.GetMacs() {
		if macs[i], err = aoe.ParseMAC(text); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	a, err := s.manager.Attach(ctx, Options{
		VolumeID: r.GetVolumeId(), Target: target, Generation: r.GetGeneration(), Frontend: r.GetFrontend(),
		DeadTime: r.GetDeadTime().AsDuration(), ReadOnly: r.GetReadOnly(), Interfaces: r.GetInterfaces(),
		FrontendReason: r.GetFrontendReason(), MACs: macs,
	}, r.GetTimeout().AsDuration())
	if err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	return attachmentMessage(a), nil
}

// Detach implements initiatorv1.InitiatorServer.
func (s *Server) Detach(ctx context.Context, r *initiatorv1.DetachRequest) (*initiatorv1.DetachResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume ID is empty")
	}
	if r.GetTimeout().AsDuration() < 0 {
		return nil, status.Error(codes.InvalidArgument, "timeout is negative")
	}
	if err := s.manager.Detach(ctx, r.GetVolumeId(), r.GetForce(), r.GetTimeout().AsDuration()); err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	return &initiatorv1.DetachResponse{GivenUp: s.manager.GivenUp(r.GetVolumeId())}, nil
}

// Resize implements initiatorv1.InitiatorServer.
func (s *Server) Resize(ctx context.Context, r *initiatorv1.ResizeRequest) (*initiatorv1.Attachment, error) {
	a, err := s.manager.Resize(ctx, r.GetVolumeId(), r.GetWantedBytes())
	if err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	return attachmentMessage(a), nil
}

// Get implements initiatorv1.InitiatorServer.
func (s *Server) Get(_ context.Context, r *initiatorv1.GetRequest) (*initiatorv1.Attachment, error) {
	a, err := s.manager.Status(r.GetVolumeId())
	if err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	return attachmentMessage(a), nil
}

// List implements initiatorv1.InitiatorServer.
func (s *Server) List(context.Context, *initiatorv1.ListRequest) (*initiatorv1.ListResponse, error) {
	return s.list(), nil
}

func (s *Server) list() *initiatorv1.ListResponse {
	response := &initiatorv1.ListResponse{}
	for _, a := range s.manager.List() {
		response.Attachments = append(response.Attachments, attachmentMessage(a))
	}
	return response
}

// Watch implements initiatorv1.InitiatorServer.
func (s *Server) Watch(_ *initiatorv1.WatchRequest, stream initiatorv1.Initiator_WatchServer) error {
	changes, cancel := s.manager.Subscribe()
	defer cancel()
	for {
		if err := stream.Send(s.list()); err != nil {
			return err
		}
		select {
		case <-changes:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.manager.stopped.Done():
			return status.Error(codes.Unavailable, ErrStopping.Error())
		}
		select {
		case <-time.After(watchPause):
		case <-stream.Context().Done():
		}
	}
}

// Discover implements initiatorv1.InitiatorServer.
func (s *Server) Discover(ctx context.Context, r *initiatorv1.DiscoverRequest) (*initiatorv1.DiscoverResponse, error) {
	where := inband.Config{Interfaces: r.GetInterfaces(), RunDir: s.manager.cfg.RunDir}
	what := inband.ScanConfig{Wait: r.GetWait().AsDuration(), Abilities: r.GetAbilities()}
	if what.Wait < 0 || what.Wait > maxDiscoverWait {
		return nil, status.Errorf(codes.InvalidArgument, "wait is %v: it can be up to %v", what.Wait, maxDiscoverWait)
	}
	if len(where.Interfaces) == 0 {
		where.Interfaces = s.manager.cfg.Interfaces
	}
	if r.GetTarget() != nil {
		addr, err := address(r.GetTarget())
		if err != nil {
			return nil, err
		}
		what.Addr = &addr
	}
	answers, err := s.discover(ctx, where, what)
	if err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	response := &initiatorv1.DiscoverResponse{}
	for _, t := range inband.Targets(answers) {
		for _, a := range t.Answers {
			response.Targets = append(response.Targets, foundMessage(a, t.Conflict))
		}
	}
	return response, nil
}

// GetNode implements initiatorv1.InitiatorServer.
func (s *Server) GetNode(ctx context.Context, _ *initiatorv1.GetNodeRequest) (*initiatorv1.GetNodeResponse, error) {
	response := &initiatorv1.GetNodeResponse{InitiatorUuid: s.manager.id.String(), Version: s.version}
	if s.Allocations != nil {
		response.HeapAllocations = s.Allocations()
	}
	for _, name := range s.manager.cfg.Interfaces {
		described := &initiatorv1.Interface{Name: name}
		if i, err := net.InterfaceByName(name); err == nil { // one that is gone is told of as down
			described.Mac, described.Mtu = i.HardwareAddr.String(), uint32(i.MTU)
			described.Up = i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0
		}
		response.Interfaces = append(response.Interfaces, described)
	}
	for _, f := range s.manager.Frontends(ctx) {
		response.Frontends = append(response.Frontends, &initiatorv1.Frontend{Name: f.Name, Available: f.Available, Reason: f.Reason,
			LiveResize: f.LiveResize})
	}
	return response, nil
}

// Examine implements initiatorv1.InitiatorServer.
func (s *Server) Examine(ctx context.Context, r *initiatorv1.ExamineRequest) (*initiatorv1.ExamineResponse, error) {
	findings, err := s.manager.Examine(ctx, r.GetFix())
	if err != nil {
		return nil, status.Error(code(err), err.Error())
	}
	response := &initiatorv1.ExamineResponse{}
	for _, f := range findings {
		response.Findings = append(response.Findings, &initiatorv1.Finding{
			Object: f.Object, What: f.What, Todo: f.Todo, Fixable: f.Fixable, Fixed: f.Fixed})
	}
	return response, nil
}

// address checks a target's address.
func address(t *initiatorv1.Target) (aoe.Addr, error) {
	if t == nil || t.GetShelf() > uint32(aoe.MaxShelf) || t.GetSlot() > uint32(aoe.MaxSlot) {
		return aoe.Addr{}, status.Errorf(codes.InvalidArgument, "target %d.%d: a shelf is 0 to %d, a slot 0 to %d",
			t.GetShelf(), t.GetSlot(), aoe.MaxShelf, aoe.MaxSlot)
	}
	return aoe.Addr{Shelf: uint16(t.GetShelf()), Slot: uint8(t.GetSlot())}, nil
}

// code is the one place where errors become gRPC codes.
func code(err error) codes.Code {
	for _, m := range []struct {
		err  error
		code codes.Code
	}{
		{ErrInvalid, codes.InvalidArgument},
		{ErrNotNow, codes.Unavailable},
		{ErrNotAttached, codes.NotFound},
		{initiator.ErrNoAnswer, codes.NotFound},
		{ErrConflict, codes.FailedPrecondition},
		{ErrInUse, codes.FailedPrecondition},
		{ErrKernelDriver, codes.FailedPrecondition},
		{ErrDamaged, codes.FailedPrecondition},
		{ErrNoFrontend, codes.FailedPrecondition},
		{initiator.ErrIdentity, codes.FailedPrecondition},
		{initiator.ErrFenced, codes.FailedPrecondition},
		{initiator.ErrNotAdmitted, codes.FailedPrecondition},
		{initiator.ErrExists, codes.FailedPrecondition},
		{ErrTooMany, codes.ResourceExhausted},
		{blockdev.ErrNoDevice, codes.ResourceExhausted},
		{blockdev.ErrHung, codes.Unavailable},
		{blockdev.ErrNotYet, codes.Unavailable},
		{blockdev.ErrUnsupported, codes.FailedPrecondition},
		{blockdev.ErrCannotGrow, codes.FailedPrecondition},
		{ErrPending, codes.Unavailable},
		{ErrStopping, codes.Unavailable},
		{initiator.ErrPending, codes.Unavailable},
		{initiator.ErrClosed, codes.Unavailable},
		{initiator.ErrNoInterface, codes.Unavailable},
		{inband.ErrNoInterface, codes.Unavailable},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, m.err) {
			return m.code
		}
	}
	return codes.Internal
}
