//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// work writes and reads back for ever, past the page cache; it ends with an error at the first one, and well when told to.
const work = `
n=0
while [ ! -e /tmp/stop ]; do
  head -c 1048576 /dev/urandom >/tmp/block
  dd if=/tmp/block of=/data/block bs=64k conv=fsync 2>/tmp/why || { cat /tmp/why; exit 1; }
  dd if=/data/block of=/tmp/back bs=64k iflag=direct 2>/tmp/why || { cat /tmp/why; exit 1; }
  cmp /tmp/block /tmp/back || exit 1
  n=$((n + 1)); echo $n >/tmp/rounds
done`

// worker starts a pod that works on the claim's volume. It is not started again when it fails.
func worker(ctx context.Context, t *testing.T, name, node string, c *corev1.PersistentVolumeClaim) *corev1.Pod {
	t.Helper()
	p := createPod(ctx, t, name, node, c, func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = []string{"sh", "-c", work}
	})
	running(ctx, t, p)
	goesOn(ctx, t, p)
	return p
}

// goesOn waits until the worker has done two more rounds: one of them began after the call.
func goesOn(ctx context.Context, t *testing.T, p *corev1.Pod) {
	t.Helper()
	first := -1
	eventually(ctx, t, podLimit, "the worker goes on", func() error {
		if err := cluster.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodRunning {
			out, _ := command(ctx, "kubectl", "logs", "--namespace", p.Namespace, p.Name)
			t.Fatalf("the worker is %s:\n%s", p.Status.Phase, out)
		}
		out, err := command(ctx, "kubectl", "exec", "--namespace", p.Namespace, p.Name, "--", "sh", "-c", "cat /tmp/rounds || echo 0")
		if err != nil {
			return err
		}
		rounds, err := strconv.Atoi(strings.TrimSpace(out))
		if first < 0 && err == nil {
			first = rounds
		}
		if err != nil || rounds < first+2 {
			return fmt.Errorf("%d rounds, after %d: %w", rounds, first, err)
		}
		return nil
	})
}

// replace deletes the driver's pod of a component on a node, and waits for the next one.
func replace(ctx context.Context, t *testing.T, component, node string) {
	t.Helper()
	old := driverPod(ctx, t, component, node)
	if out, err := command(ctx, "kubectl", "delete", "pod", "--namespace", release, old, "--wait=false"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(ctx, t, podLimit, "another "+component+" pod on "+node, func() error {
		var pods corev1.PodList
		err := cluster.List(ctx, &pods, client.InNamespace(release), client.MatchingLabels{"app.kubernetes.io/component": component})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.Spec.NodeName == node && p.Name != old && ready(p) {
				return nil
			}
		}
		return errors.New("none that is ready")
	})
}

// Every process of the driver on a pod's node is replaced under it, one after the other, then all by a chart upgrade to
// another image, and the kubelet is restarted: the pod that writes and reads back notices nothing.
func TestRestartsUnderAPod(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "restarts")
	p := worker(ctx, t, "restarts-1", cluster.other, c)
	for _, component := range []string{"initiator", "node"} {
		replace(ctx, t, component, cluster.other)
		goesOn(ctx, t, p)
	}
	if onLab() {
		upgrade(ctx, t, "upgraded")
		for _, node := range []string{cluster.other, cluster.storage} {
			replace(ctx, t, "initiator", node)
			goesOn(ctx, t, p)
		}
		if out := image(ctx, t, driverPod(ctx, t, "initiator", cluster.other)); !strings.HasSuffix(out, ":upgraded") {
			t.Errorf("the initiator's image is %s", out)
		}
		onNode(ctx, t, cluster.other, "kill $(pidof kubelet)")
		eventually(ctx, t, reportLimit, "another kubelet", func() error {
			_, err := lab(ctx, "node-exec", cluster.other, "pidof kubelet")
			return err
		})
		goesOn(ctx, t, p)
	}
	sh(ctx, t, p, "touch /tmp/stop")
	eventually(ctx, t, reportLimit, "the worker ends well", func() error {
		if err := cluster.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	remove(ctx, t, p)
	nothingAttached(ctx, t, cluster.other)
}

// upgrade gives the driver another image tag, as `helm upgrade` does, and waits for what Kubernetes replaces by itself.
func upgrade(ctx context.Context, t *testing.T, tag string) {
	t.Helper()
	now := image(ctx, t, driverPod(ctx, t, "initiator", cluster.other))
	next := now[:strings.LastIndex(now, ":")+1] + tag
	for _, node := range []string{cluster.storage, cluster.other} {
		onNode(ctx, t, node, "ctr -n k8s.io images tag --force "+now+" "+next)
	}
	chart := "../../charts/aoe-csi"
	for _, args := range [][]string{
		{"helm", "upgrade", release, chart, "--namespace", release, "--reset-then-reuse-values", "--set", "image.tag=" + tag},
		{"kubectl", "--namespace", release, "rollout", "status", "daemonset/aoe-csi-node", "--timeout=180s"},
		{"kubectl", "--namespace", release, "rollout", "status", "deployment/aoe-csi-controller", "--timeout=180s"},
	} {
		if _, err := command(ctx, args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
}

func image(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	p := &corev1.Pod{}
	if err := cluster.Get(ctx, client.ObjectKey{Namespace: release, Name: name}, p); err != nil {
		t.Fatal(err)
	}
	return p.Spec.Containers[0].Image
}

// A node loses power with a volume mounted: its pod comes back with what was durable, and in the end nothing is left there.
func TestNodeLosesPower(t *testing.T) {
	if !onLab() {
		t.Skip("only hack/cluster.sh has nodes whose plug can be pulled")
	}
	ctx := begin(t)
	c := claim(ctx, t, "power")
	p := pod(ctx, t, "power-1", cluster.other, c)
	sh(ctx, t, p, writeFile)
	want := sh(ctx, t, p, checksum)
	if out, err := lab(ctx, "node-reset", cluster.other); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(ctx, t, podLimit, "the pod's container is started again, and reads what was written", func() error {
		out, err := command(ctx, "kubectl", "exec", "--namespace", p.Namespace, p.Name, "--", "sh", "-ec", checksum)
		if err == nil && strings.TrimSpace(out) != want {
			t.Fatalf("the pod reads %s, written was %s", out, want)
		}
		return err
	})
	attachedOver(ctx, t, c, cluster.other, func(path string) bool { return path != "" })
	remove(ctx, t, p)
	nothingAttached(ctx, t, cluster.other)
}

// nothingAttached waits until the node has no device of the driver's and no record, and its doctor finds nothing.
func nothingAttached(ctx context.Context, t *testing.T, node string) {
	t.Helper()
	doctor := func() error {
		_, err := command(ctx, "kubectl", "exec", "--namespace", release, driverPod(ctx, t, "initiator", node), "--", "/aoe-csi", "doctor")
		return err
	}
	eventually(ctx, t, deleteLimit, "the doctor finds nothing on "+node, doctor)
	if !onLab() {
		return
	}
	eventually(ctx, t, deleteLimit, "nothing is left on "+node, func() error {
		out, err := lab(ctx, "node-exec", node, "ls -d /sys/block/nbd*/pid /sys/block/ublkb* /run/aoe-csi/attachments/* 2>/dev/null; true")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("left: %s", out)
		}
		return err
	})
}

// onLab says whether the cluster is hack/cluster.sh's, whose nodes can be broken.
func onLab() bool { return os.Getenv("AOE_CSI_CLUSTER") != "" }

// lab runs a command of hack/cluster.sh.
func lab(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return command(ctx, os.Getenv("AOE_CSI_CLUSTER"), args...)
}

// onNode runs a shell command as root of a node of the lab.
func onNode(ctx context.Context, t *testing.T, node, script string) {
	t.Helper()
	if _, err := lab(ctx, "node-exec", node, script); err != nil {
		t.Fatal(err)
	}
}
