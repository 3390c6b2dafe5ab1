//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Uninstalling is refused while a volume is attached, and destroys no data when it is done: installed
// again, the driver finds its volumes. The last test of the package, because it takes the driver away.
func TestUninstall(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "uninstall")
	p := pod(ctx, t, "uninstall-1", cluster.other, c)
	sh(ctx, t, p, writeFile)
	want := sh(ctx, t, p, checksum)

	out, err := command(ctx, "helm", "uninstall", release, "--namespace", release)
	if err == nil {
		t.Fatalf("helm uninstall succeeded under an attached volume:\n%s", out)
	}
	if !strings.Contains(out, c.Spec.VolumeName) && !strings.Contains(out, volumeOf(ctx, t, c).Name) {
		t.Errorf("the refusal does not name the volume:\n%s", out)
	}
	if got := sh(ctx, t, p, checksum); got != want {
		t.Errorf("after the refusal the pod reads %s, wrote %s", got, want)
	}
	// What Helm noted as "uninstalling" becomes a release again.
	if _, err := command(ctx, "helm", "rollback", release, revision(t), "--namespace", release); err != nil {
		t.Fatal(err)
	}

	remove(ctx, t, p)
	eventually(ctx, t, deleteLimit, "helm uninstall succeeds", func() error {
		_, err := command(ctx, "helm", "uninstall", release, "--namespace", release)
		return err
	})
	eventually(ctx, t, deleteLimit, "the driver's pods are gone", func() error { return noDriverPods(t) })

	if err := helmInstall(ctx); err != nil {
		t.Fatal(err)
	}
	if err := waitForDriver(ctx); err != nil {
		t.Fatal(err)
	}
	p = pod(ctx, t, "uninstall-2", cluster.storage, c)
	if got := sh(ctx, t, p, checksum); got != want {
		t.Errorf("after installing again the pod reads %s, written was %s", got, want)
	}
}

// revision returns the number of the release's last revision.
func revision(t *testing.T) string {
	t.Helper()
	out, err := command(t.Context(), "helm", "history", release, "--namespace", release, "--output=json")
	if err != nil {
		t.Fatal(err)
	}
	var revisions []struct {
		Revision int `json:"revision"`
	}
	if err := json.Unmarshal([]byte(out), &revisions); err != nil || len(revisions) == 0 {
		t.Fatalf("helm history: %v\n%s", err, out)
	}
	return strconv.Itoa(revisions[len(revisions)-1].Revision)
}

func noDriverPods(t *testing.T) error {
	var pods corev1.PodList
	err := cluster.List(t.Context(), &pods, client.InNamespace(release), client.MatchingLabels{"app.kubernetes.io/name": "aoe-csi"})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if pods.Items[i].Labels["app.kubernetes.io/component"] != "uninstall-check" {
			return fmt.Errorf("pod %s is still there", pods.Items[i].Name)
		}
	}
	return nil
}
