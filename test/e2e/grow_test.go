//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// grow asks for a larger claim, as people do.
func grow(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim, size string) {
	t.Helper()
	before := c.DeepCopy()
	c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity(size)
	if err := cluster.Patch(ctx, c, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// grown returns nil when Kubernetes says that the claim has the size, and the volume's status says it of the shelf.
func grown(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim, size string) error {
	t.Helper()
	v := volumeOf(ctx, t, c)
	if have := c.Status.Capacity[corev1.ResourceStorage]; have.Cmp(quantity(size)) != 0 {
		return fmt.Errorf("the claim has %s, want %s; conditions %+v", have.String(), size, c.Status.Conditions)
	}
	if have := v.Status.Size; have == nil || have.Cmp(quantity(size)) != 0 {
		return fmt.Errorf("the shelf has %v, want %s", have, size)
	}
	return nil
}

// room is the size of the pod's file system in KiB.
func room(ctx context.Context, t *testing.T, p *corev1.Pod) int {
	t.Helper()
	text := sh(ctx, t, p, "df -k /data | awk 'END {print $2}'")
	kib, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("df says %q", text)
	}
	return kib
}

// The pod's file system grows under it, and so does a raw device. The class asks for a front end that can.
func TestGrowUnderAPod(t *testing.T) {
	ctx := begin(t)
	binding, reclaim, expand := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete, true
	online := &storagev1.StorageClass{
		ObjectMeta:           metav1.ObjectMeta{Name: cluster.namespace + "-online"},
		Provisioner:          driverName,
		VolumeBindingMode:    &binding,
		ReclaimPolicy:        &reclaim,
		AllowVolumeExpansion: &expand,
		Parameters:           map[string]string{"onlineExpansion": "true"},
	}
	if err := cluster.Create(ctx, online); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(context.Background(), t, online) })
	c := claim(ctx, t, "grow", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &online.Name })
	p := pod(ctx, t, "grow-1", cluster.other, c)
	disk := claim(ctx, t, "grow-raw", func(c *corev1.PersistentVolumeClaim) {
		mode := corev1.PersistentVolumeBlock
		c.Spec.VolumeMode, c.Spec.StorageClassName = &mode, &online.Name
	})
	user := pod(ctx, t, "grow-raw-1", cluster.other, disk)

	before := room(ctx, t, p)
	sh(ctx, t, p, writeFile)
	want := sh(ctx, t, p, checksum)
	grow(ctx, t, volumeClaim(ctx, t, c), "192Mi")
	grow(ctx, t, volumeClaim(ctx, t, disk), "192Mi")
	eventually(ctx, t, podLimit, "the claim has grown", func() error { return grown(ctx, t, c, "192Mi") })
	if after := room(ctx, t, p); after < before+100<<10 {
		t.Errorf("the file system had %d KiB and has %d", before, after)
	}
	if got := sh(ctx, t, p, checksum); got != want {
		t.Errorf("reads %s, written was %s", got, want)
	}
	eventually(ctx, t, reportLimit, "an Event on the claim tells of it", func() error { return hasEvent(ctx, c, "VolumeExpanded", "192 MiB") })
	sh(ctx, t, p, "dd if=/dev/zero of=/data/large bs=1M count=100 conv=fsync 2>/dev/null")

	eventually(ctx, t, podLimit, "the raw claim has grown", func() error { return grown(ctx, t, disk, "192Mi") })
	if size := sh(ctx, t, user, "blockdev --getsize64 "+devicePath); size != fmt.Sprint(192<<20) {
		t.Errorf("the raw device has %s bytes, want %d", size, 192<<20)
	}
}

// Whatever the front end can, and whether or not a pod is there: with its next pod a claim of the chart's own class has its new size.
func TestGrowWithTheNextPod(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "later")
	first := pod(ctx, t, "later-1", cluster.other, c)
	before := room(ctx, t, first)
	sh(ctx, t, first, writeFile)
	want := sh(ctx, t, first, checksum)
	remove(ctx, t, first)
	grow(ctx, t, volumeClaim(ctx, t, c), "128Mi")
	eventually(ctx, t, podLimit, "the shelf has made it larger", func() error {
		v := volumeOf(ctx, t, c)
		if v.Status.Size == nil || v.Status.Size.Cmp(quantity("128Mi")) != 0 {
			return errors.New("not yet")
		}
		return nil
	})
	second := pod(ctx, t, "later-2", cluster.storage, c)
	eventually(ctx, t, podLimit, "the claim has grown", func() error { return grown(ctx, t, c, "128Mi") })
	if after := room(ctx, t, second); after < before+50<<10 {
		t.Errorf("the file system had %d KiB and has %d", before, after)
	}
	if got := sh(ctx, t, second, checksum); got != want {
		t.Errorf("reads %s, written was %s", got, want)
	}
}

// volumeClaim is the claim as the cluster has it now.
func volumeClaim(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	t.Helper()
	if err := cluster.Get(ctx, client.ObjectKeyFromObject(c), c); err != nil {
		t.Fatal(err)
	}
	return c
}
