package attach

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// serve puts the API in front of the bench's manager.
func (b *bench) serve() *Client {
	b.t.Helper()
	socket := filepath.Join(b.run, "initiator.sock")
	listener, err := Listen(socket)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := NewServer(b.m, inband.Discover, "v1.2.3")
	go func() { done <- server.Serve(ctx, listener) }()
	client, err := Dial(socket)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, client.Close()); err != nil {
			b.t.Errorf("server: %v", err)
		}
	})
	return client
}

func request(slot uint32) *initiatorv1.AttachRequest {
	o := options(uint8(slot))
	return &initiatorv1.AttachRequest{VolumeId: o.VolumeID, Target: &initiatorv1.Target{Shelf: 7, Slot: slot}, Generation: o.Generation}
}

func TestServer(t *testing.T) {
	b := newBench(t)
	client := b.serve()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	watch, err := client.Watch(ctx, &initiatorv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := watch.Recv(); err != nil || len(first.GetAttachments()) != 0 {
		t.Fatalf("first list: %v, %v", first, err)
	}
	a, err := client.Attach(ctx, request(1))
	if err != nil {
		t.Fatal(err)
	}
	if a.GetState() != "live" || a.GetSizeBytes() != lunBytes || a.GetDevice() == "" || !a.GetFlush() || len(a.GetPaths()) != 1 ||
		a.GetPaths()[0].GetInterface() != "local" || a.GetPaths()[0].GetState() != "up" {
		t.Errorf("attached: %v", a)
	}
	for {
		list, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if all := list.GetAttachments(); len(all) == 1 && all[0].GetState() == "live" {
			break
		}
	}
	if got, err := client.Get(ctx, &initiatorv1.GetRequest{VolumeId: "e7.1"}); err != nil || got.GetDevice() != a.GetDevice() {
		t.Errorf("Get: %v, %v", got, err)
	}
	node, err := client.GetNode(ctx, &initiatorv1.GetNodeRequest{})
	if err != nil || node.GetVersion() != "v1.2.3" || len(node.GetInitiatorUuid()) != 36 || len(node.GetFrontends()) != 1 || !node.GetFrontends()[0].GetAvailable() {
		t.Errorf("GetNode: %v, %v", node, err)
	}
	found, err := client.Discover(ctx, &initiatorv1.DiscoverRequest{Wait: durationpb.New(20 * time.Second)})
	if err != nil || len(found.GetTargets()) != 4 || found.GetTargets()[0].GetSizeBytes() != lunBytes {
		t.Errorf("Discover: %v, %v", found, err)
	}
	for range 2 {
		if _, err := client.Detach(ctx, &initiatorv1.DetachRequest{VolumeId: "e7.1"}); err != nil {
			t.Errorf("Detach: %v", err)
		}
	}
	if list, err := client.List(ctx, &initiatorv1.ListRequest{}); err != nil || len(list.GetAttachments()) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
}

func TestServerCodes(t *testing.T) {
	b := newBench(t)
	client := b.serve()
	ctx := t.Context()
	attach := func(change func(*initiatorv1.AttachRequest)) func() error {
		return func() error {
			r := request(1)
			r.Timeout = durationpb.New(700 * time.Millisecond)
			change(r)
			_, err := client.Attach(ctx, r)
			return err
		}
	}
	tests := []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"no target", attach(func(r *initiatorv1.AttachRequest) { r.Target = nil }), codes.InvalidArgument},
		{"slot too large", attach(func(r *initiatorv1.AttachRequest) { r.Target.Slot = 300 }), codes.InvalidArgument},
		{"wild shelf", attach(func(r *initiatorv1.AttachRequest) { r.Target.Shelf = 65535 }), codes.InvalidArgument},
		{"no volume", attach(func(r *initiatorv1.AttachRequest) { r.VolumeId = "" }), codes.InvalidArgument},
		{"no MAC address", attach(func(r *initiatorv1.AttachRequest) { r.Macs = []string{"here"} }), codes.InvalidArgument},
		{"too many MAC addresses", attach(func(r *initiatorv1.AttachRequest) {
			r.Macs = slices.Repeat([]string{"02:00:00:00:00:01"}, maxMACs+1)
		}), codes.InvalidArgument},
		{"negative timeout", attach(func(r *initiatorv1.AttachRequest) { r.Timeout = durationpb.New(-1) }), codes.InvalidArgument},
		{"nobody there", attach(func(r *initiatorv1.AttachRequest) { r.Target.Slot = 99 }), codes.NotFound},
		{"another volume", attach(func(r *initiatorv1.AttachRequest) { r.Generation = "zzzzzzzzzzzzzzzz" }), codes.FailedPrecondition},
		{"front end not here", attach(func(r *initiatorv1.AttachRequest) { r.Frontend = "ublk" }), codes.FailedPrecondition},
		{"get what is not there", func() error {
			_, err := client.Get(ctx, &initiatorv1.GetRequest{VolumeId: "x"})
			return err
		}, codes.NotFound},
		{"detach nothing", func() error {
			_, err := client.Detach(ctx, &initiatorv1.DetachRequest{})
			return err
		}, codes.InvalidArgument},
		{"discover too long", func() error {
			_, err := client.Discover(ctx, &initiatorv1.DiscoverRequest{Wait: durationpb.New(time.Hour)})
			return err
		}, codes.InvalidArgument},
	}
	for _, tt := range tests {
		if err := tt.call(); status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if len(b.m.List()) != 0 || len(b.records()) != 0 {
		t.Errorf("left: %+v, %v", b.m.List(), b.records())
	}
}

func TestCodes(t *testing.T) {
	for err, want := range map[error]codes.Code{
		ErrConflict:              codes.FailedPrecondition,
		ErrInUse:                 codes.FailedPrecondition,
		ErrPending:               codes.Unavailable,
		ErrTooMany:               codes.ResourceExhausted,
		ErrStopping:              codes.Unavailable,
		blockdev.ErrNoDevice:     codes.ResourceExhausted,
		blockdev.ErrHung:         codes.Unavailable,
		initiator.ErrNotAdmitted: codes.FailedPrecondition,
		initiator.ErrExists:      codes.FailedPrecondition,
		initiator.ErrNoInterface: codes.Unavailable,
		context.DeadlineExceeded: codes.DeadlineExceeded,
		errFake:                  codes.Internal,
	} {
		if got := code(fmt.Errorf("attach e7.1: %w", err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

func TestDialWithoutInitiator(t *testing.T) {
	_, err := Dial(filepath.Join(t.TempDir(), "none.sock"))
	if err == nil || !strings.Contains(err.Error(), "start `aoe-csi initiator`") {
		t.Errorf("error does not say what to do: %v", err)
	}
}

func TestDirectoriesAreForOne(t *testing.T) {
	run, state, other := t.TempDir(), t.TempDir(), t.TempDir()
	first, err := LockDirs(run, state)
	if err != nil {
		t.Fatal(err)
	}
	for _, dirs := range [][2]string{{run, state}, {run, other}, {other, state}} {
		if _, err := LockDirs(dirs[0], dirs[1]); !errors.Is(err, ErrRunning) {
			t.Errorf("second, in %v: %v", dirs, err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dirs := range [][2]string{{run, state}, {other, other}} {
		again, err := LockDirs(dirs[0], dirs[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}
