//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

// hasEvent returns nil if an Event of this reason about obj has all words in its message.
func hasEvent(ctx context.Context, obj client.Object, reason string, words ...string) error {
	var events corev1.EventList
	err := cluster.List(ctx, &events, client.InNamespace(obj.GetNamespace()),
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("involvedObject.uid", string(obj.GetUID()))})
	if err != nil {
		return err
	}
	seen := []string{}
	for i := range events.Items {
		e := &events.Items[i]
		seen = append(seen, e.Reason+": "+e.Message)
		if reason == "" || e.Reason == reason {
			if containsAll(e.Message, words) {
				return nil
			}
		}
	}
	return fmt.Errorf("no Event %s with %q on %s; there are:\n%s", reason, words, obj.GetName(), strings.Join(seen, "\n"))
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// Deleting a claim takes everything with it: PersistentVolume, intent, slot, and the LUN on the shelf.
func TestDeleteLeavesNothing(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "delete")
	p := pod(ctx, t, "delete-1", cluster.other, c)
	v := volumeOf(ctx, t, c)
	if luns := lunsOnShelf(ctx, t); !strings.Contains(luns, v.Spec.Generation) {
		t.Fatalf("the shelf does not list the volume %s (%s):\n%s", v.Spec.Target, v.Spec.Generation, luns)
	}
	remove(ctx, t, p)
	remove(ctx, t, c)
	eventually(ctx, t, deleteLimit, "the volume is gone everywhere", func() error {
		pv, slot := &corev1.PersistentVolume{}, &v1alpha1.AoESlot{}
		return errors.Join(
			absent(ctx, "persistent volume", c.Spec.VolumeName, pv),
			absent(ctx, "intent", v.Name, v),
			absent(ctx, "slot", v.Spec.Target, slot),
		)
	})
	if luns := lunsOnShelf(ctx, t); strings.Contains(luns, v.Spec.Generation) {
		t.Errorf("the shelf still has the LUN:\n%s", luns)
	}
}

func absent(ctx context.Context, what, name string, obj client.Object) error {
	switch err := cluster.Get(ctx, client.ObjectKey{Name: name}, obj); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s %s is still there", what, name)
}

// lunsOnShelf asks the shelf itself.
func lunsOnShelf(ctx context.Context, t *testing.T) string {
	t.Helper()
	out, err := command(ctx, "kubectl", "exec", "--namespace", release, driverPod(ctx, t, "target", cluster.storage), "--",
		"/aoe-csi", "lun", "list", "--socket=/run/aoe-csi/shelf-"+shelfNumber+"-api.sock", "--output=json")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whoever asks Kubernetes what became of a volume gets plain words.
func TestDescribe(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "told")
	p := pod(ctx, t, "told-1", cluster.other, c)
	v := volumeOf(ctx, t, c)
	device := ""
	eventually(ctx, t, reportLimit, "status names the device", func() error {
		if v = volumeOf(ctx, t, c); len(v.Status.Attachments) == 0 || v.Status.Attachments[0].Device == "" {
			return errors.New("no device yet")
		}
		device = v.Status.Attachments[0].Device
		return nil
	})
	eventually(ctx, t, reportLimit, "an Event on the claim tells where the volume is", func() error {
		return hasEvent(ctx, c, "", v.Spec.Target)
	})
	eventually(ctx, t, reportLimit, "an Event on the pod tells the device", func() error {
		return hasEvent(ctx, p, "", v.Spec.Target, device)
	})
	eventually(ctx, t, reportLimit, "the conditions are met", func() error {
		v = volumeOf(ctx, t, c)
		for _, kind := range []string{
			v1alpha1.ConditionProvisioned, v1alpha1.ConditionAdmitted, v1alpha1.ConditionAttached, v1alpha1.ConditionHealthy,
		} {
			if err := conditionTrue(v, kind); err != nil {
				return err
			}
		}
		return nil
	})
	described, err := command(ctx, "kubectl", "describe", "aoev", v.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{v.Spec.Target, v.Spec.Generation, cluster.other, device, v.Status.Attachments[0].Frontend, c.Namespace + "/" + c.Name} {
		if !strings.Contains(described, word) {
			t.Errorf("kubectl describe aoev does not tell %q:\n%s", word, described)
		}
	}
	checkPublishContext(ctx, t, c, v)
}

func conditionTrue(v *v1alpha1.AoEVolume, kind string) error {
	for _, condition := range v.Status.Conditions {
		if condition.Type == kind {
			if condition.Status != "True" || condition.Message == "" {
				return fmt.Errorf("condition %s is %s: %s", kind, condition.Status, condition.Message)
			}
			return nil
		}
	}
	return fmt.Errorf("no condition %s", kind)
}

// checkPublishContext checks what `kubectl describe volumeattachment` shows.
func checkPublishContext(ctx context.Context, t *testing.T, c *corev1.PersistentVolumeClaim, v *v1alpha1.AoEVolume) {
	t.Helper()
	var attachments storagev1.VolumeAttachmentList
	if err := cluster.List(ctx, &attachments); err != nil {
		t.Fatal(err)
	}
	for i := range attachments.Items {
		a := &attachments.Items[i]
		if a.Spec.Source.PersistentVolumeName == nil || *a.Spec.Source.PersistentVolumeName != c.Spec.VolumeName {
			continue
		}
		if got := a.Status.AttachmentMetadata; got["target"] != v.Spec.Target || got["generation"] != v.Spec.Generation {
			t.Errorf("publish context %v, want target %s and generation %s", got, v.Spec.Target, v.Spec.Generation)
		}
		return
	}
	t.Errorf("no VolumeAttachment of %s", c.Spec.VolumeName)
}

// Two pods on two nodes want one ReadWriteOnce volume: the second waits, is told why, and gets it when the first is gone.
func TestSecondNodeWaits(t *testing.T) {
	ctx := begin(t)
	c := claim(ctx, t, "contended")
	first := pod(ctx, t, "contended-1", cluster.other, c)
	second := createPod(ctx, t, "contended-2", cluster.storage, c)
	eventually(ctx, t, reportLimit, "the second pod is told that the volume is in use", func() error {
		return hasEvent(ctx, second, "FailedAttachVolume", "already used by pod(s)", first.Name)
	})
	if v := volumeOf(ctx, t, c); len(v.Status.Admitted) != 1 || v.Status.Admitted[0].Node != cluster.other {
		t.Errorf("admitted: %+v, want only %s", v.Status.Admitted, cluster.other)
	}
	sh(ctx, t, first, writeFile) // the first is not disturbed
	want := sh(ctx, t, first, checksum)
	remove(ctx, t, first)
	running(ctx, t, second)
	if got := sh(ctx, t, second, checksum); got != want {
		t.Errorf("the second pod reads %s, the first wrote %s", got, want)
	}
	v := volumeOf(ctx, t, c)
	if len(v.Status.Admitted) != 1 || v.Status.Admitted[0].Node != cluster.storage {
		t.Errorf("admitted: %+v, want only %s", v.Status.Admitted, cluster.storage)
	}
}
