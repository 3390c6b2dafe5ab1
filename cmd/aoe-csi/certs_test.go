package main

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/aoe-csi/aoe-csi/pkg/shelf"
)

// secretsOf returns the data of all Secrets by name.
func secretsOf(t *testing.T, client kubernetes.Interface) map[string]map[string][]byte {
	t.Helper()
	list, err := client.CoreV1().Secrets("ns").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string][]byte{}
	for _, s := range list.Items {
		all[s.Name] = s.Data
	}
	return all
}

// fits fails unless the certificate is one that the other side, with that trust, lets in.
func fits(t *testing.T, cert map[string][]byte, ca []byte) {
	t.Helper()
	leaf, err := shelf.ParseCertificate(cert[corev1.TLSCertKey])
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := shelf.ParseCertificate(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(issuer); err != nil {
		t.Error(err)
	}
}

func ensure(t *testing.T, c *certificates) {
	t.Helper()
	if err := c.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesAreMadeOnce(t *testing.T) {
	client := fake.NewClientset()
	ensure(t, newCertificates(client, "ns"))
	first := secretsOf(t, client)
	if len(first) != 3 {
		t.Fatalf("%d secrets", len(first))
	}
	ca := first[caSecret][corev1.TLSCertKey]
	fits(t, first[shelfSecret], ca)
	fits(t, first[controllerSecret], ca)
	if first[shelfSecret][caKey] == nil || !bytes.Equal(first[shelfSecret][caKey], first[controllerSecret][caKey]) {
		t.Error("the two sides trust different authorities")
	}
	second := newCertificates(client, "ns")
	if _, err := second.KeyPair(); err == nil {
		t.Error("a key pair before anything was read")
	}
	ensure(t, second)
	for name, data := range secretsOf(t, client) {
		if !bytes.Equal(data[corev1.TLSCertKey], first[name][corev1.TLSCertKey]) {
			t.Errorf("%s was made again", name)
		}
	}
	pair, err := second.KeyPair()
	if err != nil || !bytes.Equal(pair.Cert, first[controllerSecret][corev1.TLSCertKey]) || !bytes.Equal(pair.CA, first[controllerSecret][caKey]) {
		t.Errorf("key pair: %v", err)
	}
}

func TestControllersThatStartTogetherAgree(t *testing.T) {
	client := fake.NewClientset()
	controllers := make([]*certificates, 8)
	var wg sync.WaitGroup
	for i := range controllers {
		controllers[i] = newCertificates(client, "ns")
		wg.Go(func() {
			if err := controllers[i].Ensure(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// A leaf that was signed by an authority that lost the race is replaced in the next round.
	for _, c := range controllers {
		ensure(t, c)
	}
	all := secretsOf(t, client)
	fits(t, all[shelfSecret], all[caSecret][corev1.TLSCertKey])
	fits(t, all[controllerSecret], all[caSecret][corev1.TLSCertKey])
}

func TestCertificatesAreRenewed(t *testing.T) {
	client := fake.NewClientset()
	c := newCertificates(client, "ns")
	ensure(t, c)
	first := secretsOf(t, client)
	tests := []struct {
		name   string
		age    time.Duration
		leaf   bool
		ca     bool
		bundle int // authorities that are trusted
	}{
		{"young", leafLife / 2, false, false, 1},
		{"leaf due", leafLife*2/3 + 24*time.Hour, true, false, 1},
		{"authority due", caLife*2/3 + 24*time.Hour, true, true, 2},
	}
	for _, tt := range tests {
		c.now = func() time.Time { return time.Now().Add(tt.age) }
		ensure(t, c)
		now := secretsOf(t, client)
		for name, renewed := range map[string]bool{caSecret: tt.ca, shelfSecret: tt.leaf, controllerSecret: tt.leaf} {
			if got := !bytes.Equal(now[name][corev1.TLSCertKey], first[name][corev1.TLSCertKey]); got != renewed {
				t.Errorf("%s: %s renewed %t, want %t", tt.name, name, got, renewed)
			}
		}
		if n := bytes.Count(now[shelfSecret][caKey], []byte("BEGIN CERTIFICATE")); n != tt.bundle {
			t.Errorf("%s: %d authorities trusted, want %d", tt.name, n, tt.bundle)
		}
		fits(t, now[shelfSecret], now[caSecret][corev1.TLSCertKey])
	}
}

func TestForeignCertificatesAreLeftAlone(t *testing.T) {
	secret := func(name string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
			Data:       map[string][]byte{corev1.TLSCertKey: []byte(name), corev1.TLSPrivateKeyKey: []byte("key"), caKey: []byte("ca")},
		}
	}
	client := fake.NewClientset(secret(shelfSecret), secret(controllerSecret))
	c := newCertificates(client, "ns")
	ensure(t, c)
	all := secretsOf(t, client)
	if len(all) != 2 || string(all[shelfSecret][corev1.TLSCertKey]) != shelfSecret {
		t.Errorf("secrets: %v", all)
	}
	if pair, err := c.KeyPair(); err != nil || string(pair.Cert) != controllerSecret {
		t.Errorf("key pair %v", err)
	}
}
