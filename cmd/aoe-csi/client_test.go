package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

// fakeAttachments answers the command line with one attachment.
type fakeAttachments struct {
	initiatorv1.UnimplementedInitiatorServer
	attached *initiatorv1.AttachRequest
	detached *initiatorv1.DetachRequest
	resized  *initiatorv1.ResizeRequest
}

func sampleAttachment() *initiatorv1.Attachment {
	return &initiatorv1.Attachment{
		VolumeId: "e7.3-abcdefghijklmnop", Target: &initiatorv1.Target{Shelf: 7, Slot: 3}, Generation: "abcdefghijklmnop",
		Device: "/dev/nbd0", Frontend: "nbd", SizeBytes: 3 << 29, State: "live", Session: true, Since: timestamppb.New(time.Now().Add(-time.Minute)),
		Paths: []*initiatorv1.Path{
			{Interface: "eth1", RemoteMac: "02:00:00:00:00:07", State: "up", Window: 16, Rtt: durationpb.New(250 * time.Microsecond)},
			{Interface: "eth2", State: "down"},
		},
		Statistics: &initiatorv1.Statistics{ReadBytes: 4096, Outstanding: 2, PoolFrames: 16, PoolCeiling: 256},
	}
}

func (f *fakeAttachments) Attach(_ context.Context, r *initiatorv1.AttachRequest) (*initiatorv1.Attachment, error) {
	f.attached = r
	if r.GetTarget().GetSlot() == 9 {
		return nil, status.Error(codes.NotFound, "attach e7.9: no answer")
	}
	return sampleAttachment(), nil
}

func (f *fakeAttachments) Detach(_ context.Context, r *initiatorv1.DetachRequest) (*initiatorv1.DetachResponse, error) {
	f.detached = r
	return &initiatorv1.DetachResponse{}, nil
}

func (f *fakeAttachments) Resize(_ context.Context, r *initiatorv1.ResizeRequest) (*initiatorv1.Attachment, error) {
	f.resized = r
	if r.GetWantedBytes() > 3<<29 {
		return nil, status.Error(codes.Unavailable, "cannot grow now: e7.3 says that it has 1610612736 bytes")
	}
	return sampleAttachment(), nil
}

func (f *fakeAttachments) List(context.Context, *initiatorv1.ListRequest) (*initiatorv1.ListResponse, error) {
	return &initiatorv1.ListResponse{Attachments: []*initiatorv1.Attachment{sampleAttachment()}}, nil
}

func (f *fakeAttachments) Discover(context.Context, *initiatorv1.DiscoverRequest) (*initiatorv1.DiscoverResponse, error) {
	return &initiatorv1.DiscoverResponse{Targets: []*initiatorv1.Discovered{{
		Target: &initiatorv1.Target{Shelf: 7, Slot: 3}, Interface: "eth1", Mac: "02:00:00:00:00:07", BufferCount: 16, SectorCount: 17,
		Config: []byte("evil\x1b[2J"), SizeBytes: 1 << 30, Model: "disk",
	}}}, nil
}

// startFake serves the fake and returns its socket.
func startFake(t *testing.T, f *fakeAttachments) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "initiator.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	initiatorv1.RegisterInitiatorServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return socket
}

// execute runs one command line and returns its standard output.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestAttachCommand(t *testing.T) {
	f := &fakeAttachments{}
	socket := startFake(t, f)
	out, err := execute(t, "attach", "--socket", socket, "e7.3-abcdefghijklmnop", "--dead-time", "90s", "--interface", "eth1,eth2")
	if err != nil || out != "e7.3 is /dev/nbd0, 1.5 GiB\n" {
		t.Errorf("%q, %v", out, err)
	}
	r := f.attached
	if r.GetVolumeId() != "e7.3-abcdefghijklmnop" || r.GetGeneration() != "abcdefghijklmnop" || r.GetTarget().GetSlot() != 3 ||
		r.GetDeadTime().AsDuration() != 90*time.Second || len(r.GetInterfaces()) != 2 || r.GetFrontend() != "auto" {
		t.Errorf("request: %v", r)
	}
	out, err = execute(t, "attach", "--socket", socket, "e7.3", "-o", "json")
	var a struct{ Device, VolumeID string }
	if jsonErr := json.Unmarshal([]byte(out), &a); err != nil || jsonErr != nil || a.Device != "/dev/nbd0" {
		t.Errorf("%q, %v, %v", out, err, jsonErr)
	}
	if f.attached.GetVolumeId() != "e7.3" || f.attached.GetGeneration() != "" {
		t.Errorf("request: %v", f.attached)
	}
}

func TestDetachCommandFindsByAddress(t *testing.T) {
	f := &fakeAttachments{}
	socket := startFake(t, f)
	if out, err := execute(t, "detach", "--socket", socket, "e7.3", "--force"); err != nil || out != "e7.3 is detached\n" {
		t.Errorf("%q, %v", out, err)
	}
	if f.detached.GetVolumeId() != "e7.3-abcdefghijklmnop" || !f.detached.GetForce() {
		t.Errorf("request: %v", f.detached)
	}
	f.detached = nil
	if out, err := execute(t, "detach", "--socket", socket, "e7.4"); err != nil || out != "e7.4 is not attached\n" || f.detached != nil {
		t.Errorf("%q, %v, %v", out, err, f.detached)
	}
}

func TestResizeCommand(t *testing.T) {
	f := &fakeAttachments{}
	socket := startFake(t, f)
	for size, want := range map[string]uint64{"": 0, "1Gi": 1 << 30} {
		args := []string{"resize", "--socket", socket, "e7.3"}
		if size != "" {
			args = append(args, "--size", size)
		}
		if out, err := execute(t, args...); err != nil || out != "e7.3 is /dev/nbd0, 1.5 GiB\n" {
			t.Errorf("%q, %v", out, err)
		}
		if f.resized.GetVolumeId() != "e7.3-abcdefghijklmnop" || f.resized.GetWantedBytes() != want {
			t.Errorf("size %q: request %v", size, f.resized)
		}
	}
	out, err := execute(t, "resize", "--socket", socket, "e7.3", "-o", "json")
	var a struct{ SizeBytes string }
	if jsonErr := json.Unmarshal([]byte(out), &a); err != nil || jsonErr != nil || a.SizeBytes != "1610612736" {
		t.Errorf("%q, %v, %v", out, err, jsonErr)
	}
}

func TestTables(t *testing.T) {
	socket := startFake(t, &fakeAttachments{})
	for _, tt := range []struct {
		args []string
		want []string // in this order, each in one line of the output
	}{
		{[]string{"stat"}, []string{"VOLUME", "e7.3-abcdefghijklmnop  e7.3    /dev/nbd0  1.5 GiB  live   eth1 up,eth2 down  yes"}},
		{[]string{"stat", "e7.3", "-o", "wide"}, []string{"MESSAGE", "eth1 up 02:00:00:00:00:07 250µs×16,eth2 down  0s×0"}},
		{[]string{"discover"}, []string{"TARGET", `e7.3    eth1       02:00:00:00:00:07  1 GiB  16       17       disk   -       evil.[2J`}},
	} {
		out, err := execute(t, append(tt.args, "--socket", socket)...)
		if err != nil {
			t.Errorf("%v: %v", tt.args, err)
			continue
		}
		lines := strings.Split(out, "\n")
		for i, want := range tt.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%v: line %d is %q, want %q in it", tt.args, i, lines[i], want)
			}
		}
	}
}

func TestClientErrors(t *testing.T) {
	socket := startFake(t, &fakeAttachments{})
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"attach", "--socket", socket, "e7.9"}, "attach e7.9: no answer"},
		{[]string{"attach", "--socket", socket, "disk"}, "neither an address like e7.3"},
		{[]string{"attach", "--socket", socket, "e7.3-abcdefghijklmnop", "--generation", "bcdefghijklmnopq"}, "another generation"},
		{[]string{"stat", "--socket", socket, "e7.8"}, "e7.8 is not attached"},
		{[]string{"resize", "--socket", socket, "e7.8"}, "e7.8 is not attached"},
		{[]string{"resize", "--socket", socket, "e7.3", "--size", "2Gi"}, "cannot grow now"},
		{[]string{"resize", "--socket", socket, "e7.3", "--size", "much"}, `size "much"`},
		{[]string{"stat", "--socket", socket, "-o", "yaml"}, "must be one of table, wide, json"},
		{[]string{"stat", "--socket", "/nonexistent/sock"}, "start `aoe-csi initiator`"},
		{[]string{"initiator", "--interface", "nosuch0"}, "--interface nosuch0"},
		{[]string{"initiator", "--frontend", "scsi"}, "there are auto, ublk and nbd"},
		{[]string{"initiator", "--shards", "9"}, "--shards 9"},
		{[]string{"initiator", "--pool-max", "0"}, "--pool-max 0"},
	} {
		if _, err := execute(t, tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q in it", tt.args, err, tt.want)
		}
	}
}

func TestHumanBytes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 40: "1 TiB", 1<<64 - 1: "16 EiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
