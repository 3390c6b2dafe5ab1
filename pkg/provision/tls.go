package provision

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"
)

// ShelfServerName is the name in the certificate of every shelf: shelves are reached at
// addresses that no certificate could foresee, and share one certificate in a cluster.
const ShelfServerName = "shelf.aoe-csi.io"

// KeyPair is what the controller shows a shelf and checks a shelf by, PEM.
type KeyPair struct {
	CA   []byte
	Cert []byte
	Key  []byte
}

// KeyPairSource returns the key pair that is valid now.
type KeyPairSource func() (KeyPair, error)

// FileKeyPair returns a source that reads files, as a mounted Secret has them.
func FileKeyPair(ca, cert, key string) KeyPairSource {
	return func() (KeyPair, error) {
		var pair KeyPair
		var failed []error
		for _, f := range []struct {
			path string
			into *[]byte
		}{{ca, &pair.CA}, {cert, &pair.Cert}, {key, &pair.Key}} {
			b, err := os.ReadFile(f.path)
			*f.into = b
			failed = append(failed, err)
		}
		return pair, errors.Join(failed...)
	}
}

// NewCredentials returns the controller's side of mutual TLS. The key pair is asked for
// at every handshake, so a certificate can be replaced without a restart.
func NewCredentials(source KeyPairSource) credentials.TransportCredentials {
	return &reloadingCredentials{TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13}), source: source}
}

// reloadingCredentials makes new TLS credentials for each connection.
type reloadingCredentials struct {
	credentials.TransportCredentials // for Info
	source                           KeyPairSource
}

// ClientHandshake implements credentials.TransportCredentials. The authority is ignored:
// what counts is ShelfServerName.
func (c *reloadingCredentials) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := c.config()
	if err != nil {
		return nil, nil, fmt.Errorf("tls: own certificate: %w", err)
	}
	secure, info, err := credentials.NewTLS(config).ClientHandshake(ctx, ShelfServerName, conn)
	if err != nil {
		return nil, nil, err
	}
	heard, err := hear(ctx, secure)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return heard, info, nil
}

// hear waits for the shelf's first byte. In TLS 1.3 a client has finished its handshake
// before the server looks at its certificate: a refusal comes as an alert in place of the
// first data, and would else show as a broken pipe. A gRPC server speaks first, so there
// is always something to wait for.
func hear(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() {
		// A deadline that has passed ends the Read below.
		if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
			klog.FromContext(ctx).V(4).Info("Connection is gone already", "err", err)
		}
	})
	heard := &heardConn{Conn: conn}
	_, err := io.ReadFull(conn, heard.first[:])
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return heard, nil
}

// heardConn is a connection whose first byte was read already.
type heardConn struct {
	net.Conn
	first [1]byte
	given bool
}

// Read implements net.Conn. There is one reader, gRPC's.
func (c *heardConn) Read(b []byte) (int, error) {
	if c.given || len(b) == 0 {
		return c.Conn.Read(b)
	}
	c.given = true
	return copy(b, c.first[:]), nil
}

func (c *reloadingCredentials) config() (*tls.Config, error) {
	pair, err := c.source()
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pair.CA) {
		return nil, errors.New("no CA certificate in PEM")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
		ServerName:   ShelfServerName,
	}, nil
}

// ServerHandshake implements credentials.TransportCredentials; this side never serves.
func (c *reloadingCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("controller's credentials cannot serve")
}

// Clone implements credentials.TransportCredentials.
func (c *reloadingCredentials) Clone() credentials.TransportCredentials {
	return &reloadingCredentials{TransportCredentials: c.TransportCredentials.Clone(), source: c.source}
}
