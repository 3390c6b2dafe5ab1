package driver

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name  string
		probe func(context.Context) error
		want  codes.Code
		ready bool
	}{
		{"nothing to ask", nil, codes.OK, true},
		{"well", func(context.Context) error { return nil }, codes.OK, true},
		{"not yet", func(context.Context) error { return errors.New("initiator does not answer") }, codes.OK, false},
		{"never", func(context.Context) error { return fmt.Errorf("%w: no such store", ErrMiswired) }, codes.FailedPrecondition, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := csi.NewIdentityClient(serveTest(t, Config{Probe: test.probe}))
			response, err := client.Probe(t.Context(), &csi.ProbeRequest{})
			expect(t, err, test.want)
			if got := response.GetReady().GetValue(); got != test.ready {
				t.Errorf("ready %v, want %v", got, test.ready)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	conn := serveTest(t, Config{Version: "v1.2.3"})
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	expect(t, err, codes.OK)
	if info.GetName() != "driver.aoe-csi.io" || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("info %v", info)
	}
	_, err = csi.NewControllerClient(conn).CreateVolume(t.Context(), &csi.CreateVolumeRequest{})
	expect(t, err, codes.Unimplemented)
}

func TestSecretsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(flags)
	restore := flags.Lookup("v").Value.String()
	for name, value := range map[string]string{"logtostderr": "false", "v": "10"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	klog.SetOutput(&log)
	t.Cleanup(func() {
		klog.Flush()
		klog.SetOutput(os.Stderr)
		_ = flags.Set("logtostderr", "true")
		_ = flags.Set("v", restore)
	})
	client := controllerClient(t, newMemoryVolumes())
	for _, name := range []string{"", "pvc-1"} { // one fails, one succeeds
		_, _ = client.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*csi.VolumeCapability{mountCapability("")}, Secrets: map[string]string{"key": "hunter2"},
		})
	}
	klog.Flush()
	if got := log.String(); !strings.Contains(got, "CreateVolume") || strings.Contains(got, "hunter2") {
		t.Errorf("log: %s", got)
	}
}

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "csi.sock")
	for _, endpoint := range []string{"unix://" + path, "unix:" + path, path} { // each replaces the one before
		listener, err := ListenUnix(endpoint)
		if err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: socket %v, %v", endpoint, info, err)
		}
		t.Cleanup(func() { _ = listener.Close() })
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, endpoint := range []string{"", "tcp://127.0.0.1:1", "unix://" + file, "unix://" + filepath.Join(dir, "missing", "csi.sock")} {
		if listener, err := ListenUnix(endpoint); err == nil {
			t.Errorf("ListenUnix(%q) worked", endpoint)
			_ = listener.Close()
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("a file was replaced: %q, %v", data, err)
	}
}

// register serves a registrar and returns the kubelet's side of it, and what Serve returns.
func register(t *testing.T, ctx context.Context) (registration.RegistrationClient, <-chan error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "reg.sock")
	done := make(chan error, 1)
	go func() { done <- NewRegistrar("/var/lib/kubelet/plugins/x/csi.sock").Serve(ctx, socket) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return registration.NewRegistrationClient(conn), done
}

func TestRegistration(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kubelet, done := register(t, ctx)
	info, err := kubelet.GetInfo(ctx, &registration.InfoRequest{})
	expect(t, err, codes.OK)
	if info.GetType() != "CSIPlugin" || info.GetName() != Name || info.GetEndpoint() != "/var/lib/kubelet/plugins/x/csi.sock" || len(info.GetSupportedVersions()) == 0 {
		t.Errorf("info %v", info)
	}
	_, err = kubelet.NotifyRegistrationStatus(ctx, &registration.RegistrationStatus{PluginRegistered: true})
	expect(t, err, codes.OK)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestRegistrationRefused(t *testing.T) {
	kubelet, done := register(t, t.Context())
	_, err := kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "no such version"})
	expect(t, err, codes.OK)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no such version") {
		t.Errorf("Serve = %v, want the kubelet's words", err)
	}
}
