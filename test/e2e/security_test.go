//go:build e2e

package e2e

import (
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// A node's word for its own MAC addresses is taken; its word for another node's would let it in there.
func TestNodeWritesOnlyItsOwnRecord(t *testing.T) {
	ctx := begin(t)
	token, err := command(ctx, "kubectl", "create", "token", release+"-node", "--namespace", release,
		"--bound-object-kind=Pod", "--bound-object-name="+driverPod(ctx, t, "node", cluster.other))
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config.BearerToken, config.BearerTokenFile = strings.TrimSpace(token), ""
	config.CertData, config.KeyData, config.CertFile, config.KeyFile = nil, nil, "", ""
	asNode, err := client.New(config, client.Options{Scheme: cluster.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	annotate := func(node string) error {
		n := &v1alpha1.AoENode{}
		if err := asNode.Get(ctx, client.ObjectKey{Name: node}, n); err != nil {
			return err
		}
		before := n.DeepCopy()
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations["e2e.aoe-csi.io/written-by"] = cluster.other
		return asNode.Patch(ctx, n, client.MergeFrom(before))
	}
	if err := annotate(cluster.other); err != nil {
		t.Errorf("the node cannot write its own AoENode: %v", err)
	}
	if err := annotate(cluster.storage); !apierrors.IsForbidden(err) {
		t.Errorf("writing the AoENode of %s as %s: %v, want it forbidden", cluster.storage, cluster.other, err)
	}
	secrets, err := command(ctx, "kubectl", "auth", "can-i", "get", "secrets", "--namespace", release,
		"--as=system:serviceaccount:"+release+":"+release+"-node")
	if err == nil || !strings.HasPrefix(secrets, "no") {
		t.Errorf("may the node plugin read secrets? %s, want no", secrets)
	}
}
