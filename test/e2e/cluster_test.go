//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// Limits of the waits. The nodes may be emulated machines: everything is slow there, nothing hangs.
const (
	podLimit    = 3 * time.Minute
	deleteLimit = 2 * time.Minute
	reportLimit = time.Minute
)

// mountPath is where file system volumes are in the pods; devicePath where raw ones are.
const (
	mountPath  = "/data"
	devicePath = "/dev/volume"
)

// begin gives a test its context and prints a diagnosis if the test fails.
func begin(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("diagnosis:\n%s", diagnosis(cluster.namespace))
		}
	})
	return ctx
}

// eventually calls check until it returns nil; after limit its last error ends the test.
func eventually(ctx context.Context, t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	start := time.Now()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(start) > limit || ctx.Err() != nil {
			t.Fatalf("%s: not so after %v: %v", what, time.Since(start).Round(time.Second), err)
		}
		<-ticker.C
	}
}

// claim makes a PersistentVolumeClaim of 64 MiB and removes it, and waits for its volume to go, after the test.
func claim(ctx context.Context, t *testing.T, name string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	t.Helper()
	storageClass := class
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &storageClass,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")},
			},
		},
	}
	for _, f := range change {
		f(c)
	}
	if err := cluster.Create(ctx, c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
		defer cancel()
		if err := client.IgnoreNotFound(cluster.Delete(ctx, c)); err != nil {
			t.Errorf("clean-up: %v", err)
		}
		gone(ctx, t, c)
	})
	return c
}

// pod starts a pod that sleeps on node with the claim's volume and returns when it runs. It goes with the test.
func pod(ctx context.Context, t *testing.T, name, node string, c *corev1.PersistentVolumeClaim) *corev1.Pod {
	t.Helper()
	p := createPod(ctx, t, name, node, c)
	running(ctx, t, p)
	return p
}

// createPod is pod without the waiting; change makes it another.
func createPod(ctx context.Context, t *testing.T, name, node string, c *corev1.PersistentVolumeClaim, change ...func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	grace := int64(0)
	container := corev1.Container{
		Name: "main", Image: cluster.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"sleep", "86400"},
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		container.VolumeDevices = []corev1.VolumeDevice{{Name: "volume", DevicePath: devicePath}}
	} else {
		container.VolumeMounts = []corev1.VolumeMount{{Name: "volume", MountPath: mountPath}}
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.namespace, Name: name},
		Spec: corev1.PodSpec{
			// Through the scheduler, which is what a volume that waits for its first consumer needs.
			NodeSelector:                  map[string]string{corev1.LabelHostname: node},
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{container},
			Volumes: []corev1.Volume{{Name: "volume", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name},
			}}},
		},
	}
	for _, f := range change {
		f(p)
	}
	if err := cluster.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
		defer cancel()
		remove(ctx, t, p)
	})
	return p
}

// running waits until the pod's container runs.
func running(ctx context.Context, t *testing.T, p *corev1.Pod) {
	t.Helper()
	eventually(ctx, t, podLimit, "pod "+p.Name+" runs", func() error {
		if err := cluster.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		if ready(p) {
			return nil
		}
		return fmt.Errorf("phase %s", p.Status.Phase)
	})
}

func ready(p *corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// remove deletes an object and waits until it is gone.
func remove(ctx context.Context, t *testing.T, obj client.Object) {
	t.Helper()
	if err := client.IgnoreNotFound(cluster.Delete(ctx, obj)); err != nil {
		t.Errorf("delete %s: %v", obj.GetName(), err)
		return
	}
	gone(ctx, t, obj)
}

func gone(ctx context.Context, t *testing.T, obj client.Object) {
	t.Helper()
	eventually(ctx, t, deleteLimit, obj.GetName()+" is gone", func() error {
		switch err := cluster.Get(ctx, client.ObjectKeyFromObject(obj), obj); {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return errors.New("still there")
	})
}

// sh runs a shell command in the pod and returns what it printed, without blanks around it.
func sh(ctx context.Context, t *testing.T, p *corev1.Pod, script string) string {
	t.Helper()
	out, err := command(ctx, "kubectl", "exec", "--namespace", p.Namespace, p.Name, "--", "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// volumeOf returns the AoEVolume behind a bound claim. It is named as the PersistentVolume is.
func volumeOf(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim) *v1alpha1.AoEVolume {
	t.Helper()
	if err := cluster.Get(ctx, client.ObjectKeyFromObject(c), c); err != nil {
		t.Fatal(err)
	}
	v := &v1alpha1.AoEVolume{}
	if err := cluster.Get(ctx, client.ObjectKey{Name: c.Spec.VolumeName}, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// driverPod returns the name of the driver's pod of a component on a node.
func driverPod(ctx context.Context, t *testing.T, component, node string) string {
	t.Helper()
	var pods corev1.PodList
	err := cluster.List(ctx, &pods, client.InNamespace(release), client.MatchingLabels{"app.kubernetes.io/component": component})
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		if pods.Items[i].Spec.NodeName == node {
			return pods.Items[i].Name
		}
	}
	t.Fatalf("no %s pod on %s", component, node)
	return ""
}

// diagnosis collects what tells why something did not work; namespace may be empty.
func diagnosis(namespace string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	questions := [][]string{
		{"get", "pods", "--all-namespaces", "--output=wide"},
		{"get", "pvc,pv,volumeattachments,csinodes,csistoragecapacities,aoevolumes,aoenodes,aoeslots", "--all-namespaces"},
		{"describe", "aoevolumes"},
		{"logs", "--namespace", release, "--selector=app.kubernetes.io/name=aoe-csi", "--all-containers", "--prefix", "--tail=30"},
	}
	if namespace != "" {
		questions = append(questions, []string{"get", "events", "--namespace", namespace, "--sort-by=.lastTimestamp"})
	}
	var all strings.Builder
	for _, args := range questions {
		out, err := command(ctx, "kubectl", args...)
		if err != nil {
			out = err.Error()
		}
		fmt.Fprintf(&all, "$ kubectl %s\n%s\n", strings.Join(args, " "), out)
	}
	return all.String()
}
