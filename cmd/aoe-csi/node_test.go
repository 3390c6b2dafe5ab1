package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// scriptedInitiator answers as it is told to.
type scriptedInitiator struct {
	initiatorv1.UnimplementedInitiatorServer
	mu      sync.Mutex
	asked   *initiatorv1.AttachRequest
	fail    error
	device  *initiatorv1.Attachment
	lists   chan *initiatorv1.ListResponse
	restart chan struct{} // ends a Watch
	version string
}

func (s *scriptedInitiator) Attach(_ context.Context, r *initiatorv1.AttachRequest) (*initiatorv1.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = r
	return s.device, s.fail
}

func (s *scriptedInitiator) Detach(context.Context, *initiatorv1.DetachRequest) (*initiatorv1.DetachResponse, error) {
	return &initiatorv1.DetachResponse{}, s.fail
}

func (s *scriptedInitiator) Get(context.Context, *initiatorv1.GetRequest) (*initiatorv1.Attachment, error) {
	return s.device, s.fail
}

func (s *scriptedInitiator) GetNode(context.Context, *initiatorv1.GetNodeRequest) (*initiatorv1.GetNodeResponse, error) {
	return &initiatorv1.GetNodeResponse{
		Interfaces:    []*initiatorv1.Interface{{Name: "eth1", Mac: "52:54:00:00:00:01", Mtu: 9000, Up: true}},
		Frontends:     []*initiatorv1.Frontend{{Name: "nbd", Available: true}},
		InitiatorUuid: "uuid", Version: s.version,
	}, nil
}

func (s *scriptedInitiator) Watch(_ *initiatorv1.WatchRequest, stream grpc.ServerStreamingServer[initiatorv1.ListResponse]) error {
	for {
		select {
		case <-s.restart:
			return status.Error(codes.Unavailable, "restart")
		case list := <-s.lists:
			if err := stream.Send(list); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// connect serves the initiator on a socket until the test ends.
func (s *scriptedInitiator) connect(t *testing.T) initiatorv1.InitiatorClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "initiator.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	initiatorv1.RegisterInitiatorServer(server, s)
	go server.Serve(listener) // ends with Stop
	conn, err := dialInitiator(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
	})
	return initiatorv1.NewInitiatorClient(conn)
}

func TestNodeAttacher(t *testing.T) {
	initiator := &scriptedInitiator{device: &initiatorv1.Attachment{
		Device: "/dev/nbd3", Frontend: "nbd", State: "live", Paths: []*initiatorv1.Path{{Interface: "eth1", State: "up"}},
	}}
	attacher := &nodeAttacher{client: initiator.connect(t)}
	p := volume.Publication{Target: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklm234", Frontend: "nbd", DeadTime: time.Minute, ReadOnly: true}
	device, err := attacher.Attach(t.Context(), "id", p)
	if err != nil || device != "/dev/nbd3" {
		t.Fatalf("Attach = %q, %v", device, err)
	}
	asked := initiator.asked
	if asked.GetVolumeId() != "id" || asked.GetTarget().GetShelf() != 7 || asked.GetTarget().GetSlot() != 3 || !asked.GetReadOnly() ||
		asked.GetGeneration() != "abcdefghijklm234" || asked.GetFrontend() != "nbd" || asked.GetDeadTime().AsDuration() != time.Minute {
		t.Errorf("asked for %v", asked)
	}
	found, err := attacher.Device(t.Context(), "id")
	if err != nil || found.Device != "/dev/nbd3" || found.Frontend != "nbd" || len(found.Paths) != 1 || found.Paths[0].Interface != "eth1" {
		t.Errorf("Device = %+v, %v", found, err)
	}
	initiator.fail = status.Error(codes.NotFound, "no such attachment")
	if _, err := attacher.Device(t.Context(), "id"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Device of an unknown volume: %v", err)
	}
	initiator.fail = status.Error(codes.Unavailable, "target does not answer")
	_, err = attacher.Detach(t.Context(), "id", false)
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "rpc error") || !strings.Contains(err.Error(), "target does not answer") {
		t.Errorf("Detach: %v (code %s)", err, status.Code(err))
	}
}

// memoryNodes keeps what is reported; it fails as often as it is told to.
type memoryNodes struct {
	volume.Nodes
	puts  chan volume.Node
	fails chan error
}

func (m *memoryNodes) PutNode(_ context.Context, n *volume.Node) error {
	select {
	case err := <-m.fails:
		return err
	default:
	}
	m.puts <- *n
	return nil
}

func TestNodeReporter(t *testing.T) {
	initiator := &scriptedInitiator{lists: make(chan *initiatorv1.ListResponse), version: "v1"}
	nodes := &memoryNodes{puts: make(chan volume.Node), fails: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	reporter := &nodeReporter{
		client: initiator.connect(t), nodes: nodes, name: "node-a", segment: "lab",
		gather: time.Millisecond, poll: time.Hour, retry: time.Millisecond,
	}
	done := make(chan error, 1)
	go func() { done <- reporter.run(ctx) }()

	nodes.fails <- errors.New("API server is away") // the first write fails and is repeated
	initiator.lists <- &initiatorv1.ListResponse{}
	got := <-nodes.puts
	if got.Name != "node-a" || got.Segments[0] != "lab" || len(got.Attachments) != 0 || got.Interfaces[0].MAC != "52:54:00:00:00:01" ||
		!got.Frontends[0].Available || got.InitiatorUUID != "uuid" || got.Software != "v1" {
		t.Errorf("first report %+v", got)
	}
	initiator.lists <- &initiatorv1.ListResponse{} // the same again: nothing to write
	initiator.lists <- &initiatorv1.ListResponse{Attachments: []*initiatorv1.Attachment{{VolumeId: "id", Device: "/dev/nbd0", State: "live"}}}
	got = <-nodes.puts
	if len(got.Attachments) != 1 || got.Attachments[0].Device != "/dev/nbd0" {
		t.Errorf("second report %+v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestNodeReporterFollowsRestart(t *testing.T) {
	initiator := &scriptedInitiator{lists: make(chan *initiatorv1.ListResponse), restart: make(chan struct{})}
	nodes := &memoryNodes{puts: make(chan volume.Node), fails: make(chan error)}
	ctx, cancel := context.WithCancel(t.Context())
	reporter := &nodeReporter{client: initiator.connect(t), nodes: nodes, gather: time.Millisecond, poll: time.Hour, retry: time.Millisecond}
	done := make(chan error, 1)
	go func() { done <- reporter.run(ctx) }()
	initiator.lists <- &initiatorv1.ListResponse{}
	<-nodes.puts
	// A closed stream is opened again, and what it says then is reported.
	initiator.restart <- struct{}{}
	initiator.lists <- &initiatorv1.ListResponse{Attachments: []*initiatorv1.Attachment{{VolumeId: "id"}}}
	if got := <-nodes.puts; len(got.Attachments) != 1 {
		t.Errorf("after the restart: %+v", got)
	}
	cancel()
	<-done
}

func TestOpenNodeStoreDirectory(t *testing.T) {
	dir := t.TempDir()
	nodes, _, stop, err := openNodeStore(dir, "", "node-a")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := nodes.PutNode(t.Context(), &volume.Node{Name: "node-a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nodes", "node-a.json")); err != nil {
		t.Error(err)
	}
}

func TestRunTogether(t *testing.T) {
	broken := errors.New("broken")
	waits := func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	}
	err := runTogether(t.Context(), []func(context.Context) error{waits, func(context.Context) error { return broken }, waits})
	if !errors.Is(err, broken) {
		t.Errorf("runTogether = %v, want %v", err, broken)
	}
}

// TestVolumeLoss: the event is on the volume that the device was of, and on no other.
func TestVolumeLoss(t *testing.T) {
	store, err := provision.OpenFileStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := volume.ID{Addr: aoe.Addr{Shelf: 7, Slot: 3}, Generation: "abcdefghijklm234"}
	if err := store.CreateVolume(t.Context(), &volume.Record{Name: "pvc-1", ID: id, Claim: "default/data", Phase: volume.PhaseReady}); err != nil {
		t.Fatal(err)
	}
	if err := store.ClaimSlot(t.Context(), volume.Slot{Addr: id.Addr, VolumeName: "pvc-1", Generation: id.Generation}); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	r := &eventRecorder{ctx: t.Context(), store: store, volumes: tellTo(told)}
	r.VolumeLoss(id.String(), "IOGivenUp", "gone")
	select {
	case text := <-told:
		if text != "pvc-1 default/data Warning IOGivenUp gone" {
			t.Errorf("told %q", text)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody was told")
	}
	if rec, err := recordOf(t.Context(), store, "e7.3-zzzzzzzzzzzzzzzz"); err == nil {
		t.Errorf("an earlier volume's address is %+v", rec)
	}
}

// tellTo is a recorder that hands on what it is told.
type tellTo chan string

func (c tellTo) Event(rec *volume.Record, kind provision.EventType, reason, message string) {
	c <- fmt.Sprintf("%s %s %s %s %s", rec.Name, rec.Claim, kind, reason, message)
}
