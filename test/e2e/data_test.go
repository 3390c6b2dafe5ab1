//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// writeFile writes random bytes that are durable when it returns; checksum reads them back.
const (
	writeFile = "dd if=/dev/urandom of=/data/bytes bs=1M count=16 conv=fsync 2>/dev/null"
	checksum  = "sha256sum /data/bytes"
)

// The main job: what one pod wrote the next one reads, on another node and on the storage host itself.
func TestDataFollowsThePod(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "follow")
	first := pod(ctx, t, "follow-1", cluster.other, c)
	if fs := fileSystem(ctx, t, first); fs != "ext4" {
		t.Errorf("mounted as %s, want ext4", fs)
	}
	sh(ctx, t, first, writeFile)
	want := sh(ctx, t, first, checksum)
	attachedOver(ctx, t, c, cluster.other, func(path string) bool { return path != "local" && path != "" })
	remove(ctx, t, first)

	second := pod(ctx, t, "follow-2", cluster.storage, c)
	if got := sh(ctx, t, second, checksum); got != want {
		t.Errorf("the pod on %s reads %s, written was %s", cluster.storage, got, want)
	}
	// A NIC does not send a frame back to its own host: the path must be the socket of the target.
	attachedOver(ctx, t, c, cluster.storage, func(path string) bool { return path == "local" })
	sh(ctx, t, second, writeFile)
	want = sh(ctx, t, second, checksum)
	remove(ctx, t, second)

	third := pod(ctx, t, "follow-3", cluster.other, c)
	if got := sh(ctx, t, third, checksum); got != want {
		t.Errorf("back on %s: reads %s, written was %s", cluster.other, got, want)
	}
}

// attachedOver waits until the volume's status says that node has it, live, over a path that suits.
func attachedOver(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim, node string, suits func(path string) bool) {
	t.Helper()
	eventually(ctx, t, reportLimit, "status of the volume names the path on "+node, func() error {
		v := volumeOf(ctx, t, c)
		if len(v.Status.Attachments) != 1 {
			return fmt.Errorf("%d attachments, want one", len(v.Status.Attachments))
		}
		a := v.Status.Attachments[0]
		if a.Node != node || a.Device == "" || a.Frontend == "" || a.State != "live" || len(a.Paths) == 0 {
			return fmt.Errorf("attachment %+v, want one on %s, live, with a device and a path", a, node)
		}
		if !suits(a.Paths[0].Interface) {
			return fmt.Errorf("path over %q", a.Paths[0].Interface)
		}
		return nil
	})
}

func fileSystem(ctx context.Context, t *testing.T, p *corev1.Pod) string {
	t.Helper()
	return sh(ctx, t, p, "awk '$2 == \"/data\" {print $3}' /proc/mounts")
}

func TestRawBlock(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "raw", func(c *corev1.PersistentVolumeClaim) {
		mode := corev1.PersistentVolumeBlock
		c.Spec.VolumeMode = &mode
	})
	first := pod(ctx, t, "raw-1", cluster.other, c)
	if size := sh(ctx, t, first, "blockdev --getsize64 "+devicePath); size != fmt.Sprint(64<<20) {
		t.Errorf("device has %s bytes, the claim asked for %d", size, 64<<20)
	}
	// A new volume is zeroes, whatever was in its slot before.
	sh(ctx, t, first, "cmp -n 67108864 "+devicePath+" /dev/zero")
	sh(ctx, t, first, "dd if=/dev/urandom of="+devicePath+" bs=1M seek=8 count=8 conv=fsync,notrunc 2>/dev/null")
	const read = "sha256sum " + devicePath
	want := sh(ctx, t, first, read)
	remove(ctx, t, first)
	second := pod(ctx, t, "raw-2", cluster.storage, c)
	if got := sh(ctx, t, second, read); got != want {
		t.Errorf("the second pod reads %s, the first saw %s", got, want)
	}
}

// ReadWriteOncePod and xfs together: each costs one pod's start less that way.
func TestReadWriteOncePodWithXFS(t *testing.T) {
	ctx := begin(t)
	binding, reclaim := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete
	xfs := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: cluster.namespace + "-xfs"},
		Provisioner:       driverName,
		VolumeBindingMode: &binding,
		ReclaimPolicy:     &reclaim,
		Parameters:        map[string]string{"csi.storage.k8s.io/fstype": "xfs", "shelf": shelfNumber},
	}
	if err := cluster.Create(ctx, xfs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(context.Background(), t, xfs) })
	c := claim(ctx, t, "once", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.StorageClassName = &xfs.Name
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		// mkfs.xfs makes nothing smaller than 300 MB
		c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity("320Mi")
	})
	first := pod(ctx, t, "once-1", cluster.other, c)
	if fs := fileSystem(ctx, t, first); fs != "xfs" {
		t.Errorf("mounted as %s, want xfs", fs)
	}
	sh(ctx, t, first, writeFile)
	want := sh(ctx, t, first, checksum)

	// Even on the same node a second pod has to wait.
	second := createPod(ctx, t, "once-2", cluster.other, c)
	eventually(ctx, t, reportLimit, "the second pod is held back", func() error {
		return hasEvent(ctx, second, "FailedScheduling", "ReadWriteOncePod")
	})
	remove(ctx, t, first)
	running(ctx, t, second)
	if got := sh(ctx, t, second, checksum); got != want {
		t.Errorf("the second pod reads %s, the first wrote %s", got, want)
	}
}

// The shelf that a StorageClass names does not exist: the claim says so instead of hanging silently.
func TestClaimOnAShelfThatIsNotThere(t *testing.T) {
	ctx := begin(t)
	binding := storagev1.VolumeBindingImmediate
	wrong := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: cluster.namespace + "-shelf-99"},
		Provisioner:       driverName,
		VolumeBindingMode: &binding,
		Parameters:        map[string]string{"shelf": "99"},
	}
	if err := cluster.Create(ctx, wrong); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(context.Background(), t, wrong) })
	c := claim(ctx, t, "nowhere", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &wrong.Name })
	eventually(ctx, t, reportLimit, "an Event on the claim names the shelf", func() error {
		return hasEvent(ctx, c, "ProvisioningFailed", "99")
	})
	var volumes v1alpha1.AoEVolumeList
	if err := cluster.List(ctx, &volumes); err != nil {
		t.Fatal(err)
	}
	for i := range volumes.Items {
		if strings.HasPrefix(volumes.Items[i].Spec.Target, "e99.") {
			t.Errorf("an intent was left for a shelf that nobody has: %s", volumes.Items[i].Name)
		}
	}
}
