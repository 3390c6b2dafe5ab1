package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

type fakeIdentity struct {
	csi.UnimplementedIdentityServer
	ready *wrapperspb.BoolValue
	err   error
}

func (f fakeIdentity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: f.ready}, f.err
}

// serveUnix serves what register adds on a socket of its own until the test ends, and returns the socket's path.
func serveUnix(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return path
}

func TestProbeDriver(t *testing.T) {
	tests := []struct {
		name  string
		fake  fakeIdentity
		ready bool
		want  string // part of the error; empty: success
	}{
		{name: "answers", fake: fakeIdentity{ready: wrapperspb.Bool(true)}},
		{name: "not ready is alive", fake: fakeIdentity{ready: wrapperspb.Bool(false)}},
		{name: "not ready", fake: fakeIdentity{ready: wrapperspb.Bool(false)}, ready: true, want: "not ready"},
		{name: "ready unset means ready", ready: true},
		{name: "own error is alive", fake: fakeIdentity{err: status.Error(codes.FailedPrecondition, "no initiator")}},
		{name: "own error is not ready", fake: fakeIdentity{err: status.Error(codes.FailedPrecondition, "no initiator")},
			ready: true, want: "no initiator"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := serveUnix(t, func(s *grpc.Server) { csi.RegisterIdentityServer(s, tt.fake) })
			args := []string{"--endpoint=unix://" + path}
			if tt.ready {
				args = append(args, "--ready")
			}
			checkProbe(t, args, tt.want)
		})
	}
}

func TestProbeInitiator(t *testing.T) {
	path := serveUnix(t, func(s *grpc.Server) {
		initiatorv1.RegisterInitiatorServer(s, fakeInitiator{})
	})
	checkProbe(t, []string{"--initiator=" + path}, "")
}

type fakeInitiator struct {
	initiatorv1.UnimplementedInitiatorServer
}

func (fakeInitiator) GetNode(context.Context, *initiatorv1.GetNodeRequest) (*initiatorv1.GetNodeResponse, error) {
	return &initiatorv1.GetNodeResponse{}, nil
}

func TestProbeNobodyThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.sock")
	checkProbe(t, []string{"--endpoint=unix://" + path}, "absent.sock")
	checkProbe(t, []string{"--initiator=" + path}, "absent.sock")
}

func TestProbeNobodyAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deaf.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	start := time.Now()
	checkProbe(t, []string{"--endpoint=unix://" + path, "--timeout=200ms"}, "deaf.sock")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("gave up after %v, asked for 200 ms", took)
	}
}

func TestProbeWhom(t *testing.T) {
	checkProbe(t, nil, "at least one")
	checkProbe(t, []string{"--endpoint=unix:///a", "--initiator=/b"}, "none of the others can be")
}

func checkProbe(t *testing.T, args []string, want string) {
	t.Helper()
	cmd := newProbeCommand()
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.ExecuteContext(context.Background())
	switch {
	case want == "" && err != nil:
		t.Errorf("probe %v: %v, want success", args, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("probe %v: error %v, want one about %q", args, err, want)
	}
}
