package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/target"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// pki is an authority with both sides' certificates in files.
type pki struct {
	server shelf.TLSFiles
	client shelf.TLSFiles
}

func newPKI(t *testing.T) pki {
	t.Helper()
	ca, err := shelf.GenerateCA(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(role shelf.Role) shelf.TLSFiles {
		pair, err := shelf.Issue(ca, role, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		files := shelf.TLSFiles{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
		for path, text := range map[string][]byte{files.CA: ca.Cert, files.Cert: pair.Cert, files.Key: pair.Key} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return files
	}
	return pki{server: write(shelf.ServerRole), client: write(shelf.ClientRole)}
}

// background runs f until the test ends, and waits for it.
func background(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
}

// serveShelfTLS serves a real shelf's API, without a network for frames, and returns its address.
func serveShelfTLS(t *testing.T, number uint16, files shelf.TLSFiles) string {
	t.Helper()
	s, err := target.Open(target.Config{Dir: t.TempDir(), Number: &number})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	creds, err := shelf.Credentials(files)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, "shelf", func(ctx context.Context) error {
		return shelf.Serve(ctx, l, shelf.NewServer(s, shelf.Info{Segment: "default"}), creds)
	})
	return "tcp://" + l.Addr().String()
}

// startController runs the subcommand over a directory in which node n1 is known, and
// returns a client of its CSI socket.
func startController(t *testing.T, address string, client shelf.TLSFiles) csi.ControllerClient {
	t.Helper()
	dir := t.TempDir()
	store, err := provision.OpenFileStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	node := &volume.Node{Name: "n1", Interfaces: []volume.Interface{{Name: "eth1", MAC: "52:54:00:00:00:01", Up: true}}}
	if err := store.PutNode(context.Background(), node); err != nil {
		t.Fatal(err)
	}
	opt := controllerOptions{
		endpoint: "unix://" + filepath.Join(dir, "csi.sock"), store: filepath.Join(dir, "store"), shelves: []string{address},
		shelfTimeout: 5 * time.Second, tlsCA: client.CA, tlsCert: client.Cert, tlsKey: client.Key,
	}
	background(t, "controller", func(ctx context.Context) error { return runController(ctx, opt) })
	conn, err := grpc.NewClient(opt.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return csi.NewControllerClient(conn)
}

func createRequest(name string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20}, VolumeCapabilities: []*csi.VolumeCapability{writer()}}
}

func writer() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func TestControllerOnARealShelf(t *testing.T) {
	keys := newPKI(t)
	c := startController(t, serveShelfTLS(t, 7, keys.server), keys.client)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var handle string
	for range 2 {
		made, err := c.CreateVolume(ctx, createRequest("pvc-1"))
		if err != nil {
			t.Fatal(err)
		}
		if handle != "" && made.GetVolume().GetVolumeId() != handle {
			t.Errorf("made %s and %s", handle, made.GetVolume().GetVolumeId())
		}
		handle = made.GetVolume().GetVolumeId()
	}
	if !strings.HasPrefix(handle, "e7.0-") {
		t.Errorf("handle %s", handle)
	}
	for range 2 {
		published, err := c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: handle, NodeId: "n1", VolumeCapability: writer()})
		if err != nil {
			t.Fatal(err)
		}
		if got := published.GetPublishContext()["target"]; got != "e7.0" {
			t.Errorf("publish context %v", published.GetPublishContext())
		}
	}
	if _, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: handle}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("delete while published: %v", err)
	}
	for range 2 {
		if _, err := c.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: handle, NodeId: "n1"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: handle}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestControllerErrorsOfShelves(t *testing.T) {
	keys, strangers := newPKI(t), newPKI(t)
	address := serveShelfTLS(t, 7, keys.server)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "tcp://" + silent.Addr().String()
	if err := silent.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		address string
		client  shelf.TLSFiles
		want    codes.Code
		text    string
	}{
		{"shelf that does not answer", gone, keys.client, codes.Unavailable, gone},
		{"certificates of another authority", address, strangers.client, codes.Unauthenticated, address},
		{
			"certificate of another authority, the right trust", address,
			shelf.TLSFiles{CA: keys.client.CA, Cert: strangers.client.Cert, Key: strangers.client.Key}, codes.Unauthenticated, "certificate",
		},
		{
			"a shelf's certificate instead of a controller's", address,
			shelf.TLSFiles{CA: keys.server.CA, Cert: keys.server.Cert, Key: keys.server.Key}, codes.Unauthenticated, "certificate",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err := startController(t, tt.address, tt.client).CreateVolume(ctx, createRequest("pvc-1"))
			if status.Code(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %s with %q", err, tt.want, tt.text)
			}
		})
	}
}
