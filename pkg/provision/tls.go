package provision

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
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
	return credentials.NewTLS(config).ClientHandshake(ctx, ShelfServerName, conn)
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
