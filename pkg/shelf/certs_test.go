package shelf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
)

func newCA(t *testing.T) KeyPair {
	t.Helper()
	ca, err := GenerateCA(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca KeyPair, role Role, life time.Duration) KeyPair {
	t.Helper()
	pair, err := Issue(ca, role, life)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// store writes a shelf's files, as a mounted Secret has them.
func store(t *testing.T, files TLSFiles, ca, pair KeyPair) {
	t.Helper()
	for path, text := range map[string][]byte{files.CA: ca.Cert, files.Cert: pair.Cert, files.Key: pair.Key} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// newTLS serves a shelf over TLS and returns its address and files.
func newTLS(t *testing.T, ca, pair KeyPair) (string, TLSFiles) {
	t.Helper()
	dir := t.TempDir()
	files := TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt")}
	store(t, files, ca, pair)
	creds, err := Credentials(files)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(newTarget(t), Info{})
	serve(t, l, func(ctx context.Context) error { return Serve(ctx, l, server, creds) })
	return l.Addr().String(), files
}

// ask calls the shelf once over a connection of its own.
func ask(t *testing.T, address string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = shelfv1.NewShelfClient(conn).GetInfo(ctx, &shelfv1.GetInfoRequest{})
	return err
}

// controller is a client's side; an empty pair sends no certificate.
func controller(t *testing.T, ca, pair KeyPair, name string, most uint16) credentials.TransportCredentials {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Cert)
	config := &tls.Config{RootCAs: roots, ServerName: name, MaxVersion: most}
	if pair.Cert != nil {
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(config)
}

func TestMutualTLS(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	client := issue(t, ca, ClientRole, time.Hour)
	address, _ := newTLS(t, ca, issue(t, ca, ServerRole, time.Hour))
	for _, test := range []struct {
		name  string
		creds credentials.TransportCredentials
		want  codes.Code
	}{
		{"right", controller(t, ca, client, ServerName, 0), codes.OK},
		{"no certificate", controller(t, ca, KeyPair{}, ServerName, 0), codes.Unavailable},
		{"of another CA", controller(t, ca, issue(t, foreign, ClientRole, time.Hour), ServerName, 0), codes.Unavailable},
		{"a shelf's certificate", controller(t, ca, issue(t, ca, ServerRole, time.Hour), ServerName, 0), codes.Unavailable},
		{"expired", controller(t, ca, issue(t, ca, ClientRole, -time.Minute), ServerName, 0), codes.Unavailable},
		{"shelf of another CA", controller(t, foreign, client, ServerName, 0), codes.Unavailable},
		{"other server name", controller(t, ca, client, "example.org", 0), codes.Unavailable},
		{"TLS 1.2", controller(t, ca, client, ServerName, tls.VersionTLS12), codes.Unavailable},
		{"plain", insecure.NewCredentials(), codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := ask(t, address, test.creds); status.Code(err) != test.want {
				t.Fatalf("%v, want %v", err, test.want)
			}
		})
	}
}

// A replaced Secret counts from the next connection on, the CA included.
func TestCertificatesAreRotated(t *testing.T) {
	old, next := newCA(t), newCA(t)
	address, files := newTLS(t, old, issue(t, old, ServerRole, time.Hour))
	before := controller(t, old, issue(t, old, ClientRole, time.Hour), ServerName, 0)
	after := controller(t, next, issue(t, next, ClientRole, time.Hour), ServerName, 0)
	if err := ask(t, address, before); err != nil {
		t.Fatal(err)
	}
	store(t, files, next, issue(t, next, ServerRole, time.Hour))
	if err := ask(t, address, after); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, address, before); status.Code(err) != codes.Unavailable {
		t.Fatalf("old certificate: %v", err)
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, address, after); status.Code(err) != codes.Unavailable {
		t.Fatalf("without a key: %v", err)
	}
}

func TestCredentialsNeedFiles(t *testing.T) {
	ca := newCA(t)
	pair := issue(t, ca, ServerRole, time.Hour)
	dir := t.TempDir()
	files := TLSFiles{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), CA: filepath.Join(dir, "ca")}
	if _, err := Credentials(files); err == nil {
		t.Fatal("no files")
	}
	store(t, files, KeyPair{Cert: []byte("garbage")}, pair)
	if _, err := Credentials(files); err == nil {
		t.Fatal("garbage CA")
	}
	store(t, files, ca, KeyPair{Cert: pair.Cert, Key: issue(t, ca, ServerRole, time.Hour).Key})
	if _, err := Credentials(files); err == nil {
		t.Fatal("key of another certificate")
	}
}

func TestIssue(t *testing.T) {
	ca := newCA(t)
	pair := issue(t, ca, ServerRole, 1000*time.Hour)
	cert, err := ParseCertificate(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ParseCertificate(ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if cert.NotAfter.After(issuer.NotAfter) || cert.IsCA || cert.VerifyHostname(ServerName) != nil {
		t.Fatalf("until %v, CA's until %v", cert.NotAfter, issuer.NotAfter)
	}
	other := newCA(t)
	for name, bad := range map[string]KeyPair{
		"nothing":       {},
		"no CA":         pair,
		"no key":        {Cert: ca.Cert},
		"another's key": {Cert: ca.Cert, Key: other.Key},
		"garbage key":   {Cert: ca.Cert, Key: []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
	} {
		if _, err := Issue(bad, ClientRole, time.Hour); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}
