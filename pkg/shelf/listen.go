package shelf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"k8s.io/klog/v2"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
)

const (
	// keepaliveTime finds connections whose controller is gone.
	keepaliveTime = 30 * time.Second
	// stopPatience is how long running calls may still take when the server stops.
	stopPatience = 5 * time.Second
)

// TLSFiles are read at each handshake, so that a Secret can be replaced under a running target.
type TLSFiles struct {
	Cert, Key string // the shelf's, issued for ServerName
	CA        string // whose clients are let in
}

// Credentials is the shelf's side of mutual TLS 1.3: a client without a certificate for clients of this CA is refused. The files
// must be readable and fit together now, too.
func Credentials(files TLSFiles) (credentials.TransportCredentials, error) {
	if _, err := files.load(); err != nil {
		return nil, fmt.Errorf("shelf API's certificates: %w", err)
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config, err := files.load()
			if err != nil {
				klog.ErrorS(err, "Shelf API's certificates cannot be read, a client is refused")
			}
			return config, err
		},
	}), nil
}

func (f TLSFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in PEM", f.CA)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
	}, nil
}

// ListenUnix makes the API's socket for root on this host (0600). What a killed process left there is replaced; the caller makes sure
// that no living one has it, by the lock of the target's directory.
func ListenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Nobody else may connect between bind and chmod.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".api-")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer os.Remove(dir)
	hidden := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(hidden, 0o600)
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return &unixListener{UnixListener: l, path: path}, nil
}

// unixListener removes the socket's file under the name it has now.
type unixListener struct {
	*net.UnixListener
	path string
}

// Close implements net.Listener.
func (l *unixListener) Close() error {
	err := os.Remove(l.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.UnixListener.Close())
}

// Serve serves the API on a listener, which it takes, until ctx ends: then running calls get a few seconds. Nil credentials are
// for a unix socket only.
func Serve(ctx context.Context, l net.Listener, server shelfv1.ShelfServer, creds credentials.TransportCredentials) error {
	options := []grpc.ServerOption{
		grpc.UnaryInterceptor(logCall),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 3, PermitWithoutStream: true}),
	}
	if creds != nil {
		options = append(options, grpc.Creds(creds))
	} else if l.Addr().Network() != "unix" {
		return errors.Join(fmt.Errorf("serve shelf API on %s: no certificates", l.Addr()), l.Close())
	}
	g := grpc.NewServer(options...)
	shelfv1.RegisterShelfServer(g, server)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		timer := time.AfterFunc(stopPatience, g.Stop)
		defer timer.Stop()
		g.GracefulStop()
	})
	err := g.Serve(l)
	if !stop() {
		<-stopped
	}
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve shelf API on %s: %w", l.Addr(), err)
	}
	return nil
}

// logCall logs failed calls, and with -v=4 all of them; the API carries no secrets.
func logCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	if err != nil {
		klog.InfoS("Shelf API call refused", "method", info.FullMethod, "err", err)
	} else {
		klog.V(4).InfoS("Shelf API call", "method", info.FullMethod)
	}
	return answer, err
}
