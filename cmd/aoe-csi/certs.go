package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
)

// The Secrets of the shelf API, and the keys in them.
const (
	caSecret         = "aoe-csi-ca"
	shelfSecret      = "aoe-csi-shelf-tls"
	controllerSecret = "aoe-csi-controller-tls"

	caKey = "ca.crt"
)

// madeBy marks the Secrets that the controller made and may renew. Others, from
// cert-manager or by hand, are used as they are.
const (
	madeByLabel = "app.kubernetes.io/managed-by"
	madeByUs    = "aoe-csi-controller"
)

// Lives of certificates. What has less than a third left is made anew.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
)

// certRound is how often Secrets are read and, if they are due, renewed.
const certRound = 10 * time.Minute

// certPause is how long to wait after a failure.
const certPause = 3 * time.Second

// certificates keeps the shelf API's certificates in Secrets.
type certificates struct {
	client    kubernetes.Interface
	namespace string
	now       func() time.Time

	mu   sync.Mutex
	pair *provision.KeyPair // the controller's, as last read
}

func newCertificates(client kubernetes.Interface, namespace string) *certificates {
	return &certificates{client: client, namespace: namespace, now: time.Now}
}

// KeyPair is the provision.KeyPairSource of the controller's side.
func (c *certificates) KeyPair() (provision.KeyPair, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pair == nil {
		return provision.KeyPair{}, fmt.Errorf("secret %s/%s was not read yet", c.namespace, controllerSecret)
	}
	return *c.pair, nil
}

// Run ensures at intervals until ctx ends. CSI is served meanwhile: an API server that is
// not quite up yet is no reason to keep the side-cars waiting.
func (c *certificates) Run(ctx context.Context) {
	for {
		pause := certRound
		if err := c.Ensure(ctx); err != nil && ctx.Err() == nil {
			pause = certPause
			klog.FromContext(ctx).Error(err, "Certificates not up to date", "pause", pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Ensure makes what is missing, renews what is due, and reads the controller's key pair.
// Controllers that do so at the same time adopt what the first one made.
func (c *certificates) Ensure(ctx context.Context) error {
	foreign := 0
	for _, name := range []string{shelfSecret, controllerSecret} {
		secret, err := c.get(ctx, name)
		if err != nil {
			return err
		}
		if secret != nil && !ours(secret) {
			foreign++
		}
	}
	if foreign < 2 {
		ca, err := c.ensureCA(ctx)
		if err != nil {
			return err
		}
		if err := c.ensureLeaf(ctx, shelfSecret, shelf.ServerRole, ca); err != nil {
			return err
		}
		if err := c.ensureLeaf(ctx, controllerSecret, shelf.ClientRole, ca); err != nil {
			return err
		}
	}
	return c.read(ctx)
}

// read reads the controller's key pair, and makes nothing.
func (c *certificates) read(ctx context.Context) error {
	secret, err := c.get(ctx, controllerSecret)
	if err != nil || secret == nil {
		return errors.Join(err, fmt.Errorf("no secret %s/%s", c.namespace, controllerSecret))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pair = &provision.KeyPair{CA: secret.Data[caKey], Cert: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey]}
	return nil
}

func ours(s *corev1.Secret) bool { return s.Labels[madeByLabel] == madeByUs }

// get returns a Secret, nil if there is none.
func (c *certificates) get(ctx context.Context, name string) (*corev1.Secret, error) {
	secret, err := c.client.CoreV1().Secrets(c.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get secret %s/%s: %w", c.namespace, name, err)
	}
	return secret, nil
}

// put creates the Secret, or replaces old if there is one. If another controller was
// faster, its Secret stays, and is returned.
func (c *certificates) put(ctx context.Context, old, secret *corev1.Secret) (*corev1.Secret, error) {
	api := c.client.CoreV1().Secrets(c.namespace)
	var err error
	var written *corev1.Secret
	if old == nil {
		written, err = api.Create(ctx, secret, metav1.CreateOptions{})
	} else {
		written, err = api.Update(ctx, secret, metav1.UpdateOptions{})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return api.Get(ctx, secret.Name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("write secret %s/%s: %w", c.namespace, secret.Name, err)
	}
	klog.FromContext(ctx).Info("Certificate made", "secret", c.namespace+"/"+secret.Name)
	return written, nil
}

// fill makes the Secret's content; a nil one is a new Secret.
func (c *certificates) fill(secret *corev1.Secret, name string, pair shelf.KeyPair, bundle []byte) *corev1.Secret {
	if secret == nil {
		secret = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace, Labels: map[string]string{madeByLabel: madeByUs}},
			Type:       corev1.SecretTypeTLS,
		}
	} else {
		secret = secret.DeepCopy()
	}
	secret.Data = map[string][]byte{corev1.TLSCertKey: pair.Cert, corev1.TLSPrivateKeyKey: pair.Key, caKey: bundle}
	return secret
}

func pairOf(s *corev1.Secret) shelf.KeyPair {
	return shelf.KeyPair{Cert: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey]}
}

// ensureCA returns the authority that signs.
func (c *certificates) ensureCA(ctx context.Context) (shelf.KeyPair, error) {
	secret, err := c.get(ctx, caSecret)
	if err != nil {
		return shelf.KeyPair{}, err
	}
	if secret != nil && (!ours(secret) || !c.due(secret)) {
		return pairOf(secret), nil
	}
	pair, err := shelf.GenerateCA(caLife)
	if err != nil {
		return shelf.KeyPair{}, err
	}
	if secret, err = c.put(ctx, secret, c.fill(secret, caSecret, pair, pair.Cert)); err != nil {
		return shelf.KeyPair{}, err
	}
	return pairOf(secret), nil
}

// ensureLeaf makes one side's certificate if there is none, it is due, or another
// authority signed it. The authorities that the other side may still show are trusted
// until they expire: a Secret reaches a running pod minutes later.
func (c *certificates) ensureLeaf(ctx context.Context, name string, role shelf.Role, ca shelf.KeyPair) error {
	secret, err := c.get(ctx, name)
	if err != nil {
		return err
	}
	var trusted []byte
	if secret != nil {
		if !ours(secret) || !c.due(secret) && signedBy(secret, ca) {
			return nil
		}
		trusted = secret.Data[caKey]
	}
	pair, err := shelf.Issue(ca, role, leafLife)
	if err != nil {
		return err
	}
	_, err = c.put(ctx, secret, c.fill(secret, name, pair, c.bundle(ca.Cert, trusted)))
	return err
}

// due says whether less than a third of the certificate's life is left, or it cannot be read.
func (c *certificates) due(secret *corev1.Secret) bool {
	cert, err := shelf.ParseCertificate(secret.Data[corev1.TLSCertKey])
	if err != nil {
		return true
	}
	return cert.NotAfter.Sub(c.now()) < cert.NotAfter.Sub(cert.NotBefore)/3
}

func signedBy(secret *corev1.Secret, ca shelf.KeyPair) bool {
	issuer, err := shelf.ParseCertificate(ca.Cert)
	if err != nil {
		return false
	}
	cert, err := shelf.ParseCertificate(secret.Data[corev1.TLSCertKey])
	return err == nil && cert.CheckSignatureFrom(issuer) == nil && bytes.Contains(secret.Data[caKey], bytes.TrimSpace(ca.Cert))
}

// bundle returns the authority followed by those of old that are valid still.
func (c *certificates) bundle(ca, old []byte) []byte {
	bundle := bytes.Clone(ca)
	for block, rest := pem.Decode(old); block != nil; block, rest = pem.Decode(rest) {
		text := pem.EncodeToMemory(block)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || c.now().After(cert.NotAfter) || bytes.Contains(bundle, text) {
			continue
		}
		bundle = append(bundle, text...)
	}
	return bundle
}
