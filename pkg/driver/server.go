package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// stopGrace is how long calls under way may go on after Serve was asked to end.
const stopGrace = 10 * time.Second

// Config says what a server serves.
type Config struct {
	// Version of the software.
	Version string
	// Controller and Node are made by NewController and NewNode; nil ones are not served.
	Controller *Controller
	Node       *Node
	// Probe says why the process cannot do its work now, or nil. An error around ErrMiswired says that it never will. It may be nil.
	Probe func(context.Context) error
}

// Server serves CSI.
type Server struct {
	grpc *grpc.Server
}

// NewServer returns a server of the identity service and of what the configuration has. It serves nothing yet.
func NewServer(c Config) *Server {
	s := &Server{grpc: grpc.NewServer(grpc.ChainUnaryInterceptor(logCalls, mapErrors))}
	csi.RegisterIdentityServer(s.grpc, &identity{version: c.Version, probe: c.Probe})
	if c.Controller != nil {
		csi.RegisterControllerServer(s.grpc, c.Controller)
	}
	if c.Node != nil {
		csi.RegisterNodeServer(s.grpc, c.Node)
	}
	return s
}

// ListenAndServe serves on "unix:///path" or a path until ctx ends. A socket that was left there is replaced.
func (s *Server) ListenAndServe(ctx context.Context, endpoint string) error {
	listener, err := ListenUnix(endpoint)
	if err != nil {
		return err
	}
	return s.Serve(ctx, listener)
}

// Serve serves on a listener, which it takes, until ctx ends; calls under way get some seconds to end.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return serve(ctx, s.grpc, listener)
}

func serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }() // ends with Stop below, or on its own
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(stopGrace, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
	return nil
}

// ListenUnix listens on a socket given as "unix:///path" or as a path, and replaces a socket that was left there. Only
// root can connect.
func ListenUnix(endpoint string) (net.Listener, error) {
	path := strings.TrimPrefix(endpoint, "unix:")
	if strings.HasPrefix(path, "//") {
		path = "/" + strings.TrimLeft(path, "/")
	}
	if path == "" || strings.Contains(path, "://") {
		return nil, fmt.Errorf("listen on %q: %w: not unix:///path", endpoint, ErrMiswired)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listen on %s: %w: there is something that is not a socket", path, ErrMiswired)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace old socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// mapErrors gives every error its code.
func mapErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err == nil {
		return resp, nil
	}
	return nil, status.Error(code(err), err.Error())
}

// logCalls logs each call once, with its error if it has one. Calls that happen all the time only when asked for.
func logCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	start := time.Now()
	resp, err := handler(ctx, req)
	logger := klog.FromContext(ctx).WithValues("method", method, "request", protosanitizer.StripSecrets(req),
		"took", time.Since(start).Round(time.Millisecond).String())
	if err != nil {
		logger.Error(err, "Call failed", "code", status.Code(err).String())
		return nil, err
	}
	level := 2
	if method == "Probe" || strings.HasPrefix(method, "Get") || strings.Contains(method, "GetCapabilities") || method == "NodeGetVolumeStats" || method == "ListVolumes" {
		level = 5
	}
	logger.V(level).Info("Call", "response", protosanitizer.StripSecrets(resp))
	return resp, nil
}
