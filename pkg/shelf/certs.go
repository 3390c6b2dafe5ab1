package shelf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	// ServerName is in the certificate of every shelf: shelves are reached at addresses that no certificate could foresee.
	ServerName = "shelf.aoe-csi.io"
	// ClientName is in the certificate of every controller.
	ClientName = "controller.aoe-csi.io"

	caName = "aoe-csi CA"
	// backdate lets hosts whose clock is behind accept a new certificate.
	backdate = time.Hour
	// serialBits is as long as RFC 5280 allows, less one for the sign.
	serialBits = 159
)

// KeyPair is a certificate and its private key, both PEM; never log it.
type KeyPair struct {
	Cert, Key []byte
}

// Role says which side of the shelf API a certificate is for.
type Role int

const (
	// ServerRole is a shelf's.
	ServerRole Role = iota
	// ClientRole is a controller's.
	ClientRole
)

// GenerateCA makes a certificate authority (ECDSA P-256) that signs nothing but our certificates.
func GenerateCA(life time.Duration) (KeyPair, error) {
	template, err := newTemplate(caName, life)
	if err != nil {
		return KeyPair{}, fmt.Errorf("generate CA: %w", err)
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	pair, err := sign(template, template, nil)
	if err != nil {
		return KeyPair{}, fmt.Errorf("generate CA: %w", err)
	}
	return pair, nil
}

// Issue makes a certificate for one side, signed by ca, that ends no later than the CA's.
func Issue(ca KeyPair, role Role, life time.Duration) (KeyPair, error) {
	name, usage := ServerName, x509.ExtKeyUsageServerAuth
	if role == ClientRole {
		name, usage = ClientName, x509.ExtKeyUsageClientAuth
	}
	issuer, key, err := parseCA(ca)
	if err != nil {
		return KeyPair{}, fmt.Errorf("issue certificate for %s: CA: %w", name, err)
	}
	template, err := newTemplate(name, life)
	if err != nil {
		return KeyPair{}, fmt.Errorf("issue certificate for %s: %w", name, err)
	}
	template.DNSNames = []string{name}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	template.BasicConstraintsValid = true
	if template.NotAfter.After(issuer.NotAfter) {
		template.NotAfter = issuer.NotAfter
	}
	pair, err := sign(template, issuer, key)
	if err != nil {
		return KeyPair{}, fmt.Errorf("issue certificate for %s: %w", name, err)
	}
	return pair, nil
}

func newTemplate(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
	}, nil
}

// sign makes a key and a certificate for it; a nil signer signs itself.
func sign(template, issuer *x509.Certificate, signer crypto.Signer) (KeyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return KeyPair{}, err
	}
	if signer == nil {
		signer = key
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		return KeyPair{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return KeyPair{}, err
	}
	return KeyPair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}

func parseCA(ca KeyPair) (*x509.Certificate, crypto.Signer, error) {
	cert, err := ParseCertificate(ca.Cert)
	if err != nil {
		return nil, nil, err
	}
	if !cert.IsCA {
		return nil, nil, errors.New("certificate may not sign others")
	}
	block, _ := pem.Decode(ca.Key)
	if block == nil {
		return nil, nil, errors.New("key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, errors.New("key is not ECDSA")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, errors.New("key does not belong to the certificate")
	}
	return cert, key, nil
}

// ParseCertificate reads the first certificate of a PEM text, for its dates and names.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return cert, nil
}
