package provision_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// observe runs the status loop once and returns the volume.
func observe(t *testing.T, c client.Client, name string, told ...*events) *v1alpha1.AoEVolume {
	t.Helper()
	key := client.ObjectKey{Name: name}
	told = append(told, &events{})
	if _, err := provision.NewStatusLoop(c, told[0]).Reconcile(context.Background(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatal(err)
	}
	var vol v1alpha1.AoEVolume
	if err := c.Get(context.Background(), key, &vol); err != nil {
		t.Fatal(err)
	}
	return &vol
}

// events are those that were told, without their text.
type events []string

func (e *events) Event(_ *volume.Record, kind provision.EventType, reason, _ string) {
	*e = append(*e, string(kind)+" "+reason)
}

func wantCondition(t *testing.T, vol *v1alpha1.AoEVolume, kind string, status metav1.ConditionStatus, reason, text string) {
	t.Helper()
	c := meta.FindStatusCondition(vol.Status.Conditions, kind)
	if c == nil || c.Status != status || c.Reason != reason || !strings.Contains(c.Message, text) {
		t.Errorf("condition %s is %+v; want %s, %s, %q", kind, c, status, reason, text)
	}
}

func TestStatusFollowsTheVolume(t *testing.T) {
	c := newFakeClient(t)
	store := provision.NewKubernetesStore(c)
	w := newWorldOn(t, store, newFakeShelf(7))
	ctx := context.Background()

	w.shelves[0].setDown(true)
	if _, err := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-1", RequiredBytes: 1 << 30}); err == nil {
		t.Fatal("made without a shelf")
	}
	w.shelves[0].setDown(false)
	w.steps.set(func(op string) fault {
		if op == "shelf7.CreateLun" {
			return loseAfter
		}
		return noFault
	})
	if _, err := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-1", RequiredBytes: 1 << 30}); err == nil {
		t.Fatal("made without an answer")
	}
	w.steps.set(nil)
	wantCondition(t, observe(t, c, "pvc-1"), v1alpha1.ConditionProvisioned, metav1.ConditionFalse, "Creating", "answer lost")

	v := w.create("pvc-1", 1<<30)
	vol := observe(t, c, "pvc-1")
	wantCondition(t, vol, v1alpha1.ConditionProvisioned, metav1.ConditionTrue, "LunReady", "e7.0, 1 GiB; identity "+string(v.ID.Generation))
	wantCondition(t, vol, v1alpha1.ConditionAdmitted, metav1.ConditionFalse, "NoNode", "no node")
	wantCondition(t, vol, v1alpha1.ConditionAttached, metav1.ConditionFalse, "NoDevice", "no node")
	wantCondition(t, vol, v1alpha1.ConditionHealthy, metav1.ConditionUnknown, "NotAttached", "")

	w.shelves[0].setDown(true)
	if _, err := w.service.Expand(ctx, v.ID.String(), 2<<30, 0); err == nil {
		t.Fatal("grown without a shelf")
	}
	wantCondition(t, observe(t, c, "pvc-1"), v1alpha1.ConditionProvisioned, metav1.ConditionTrue, "Growing", "e7.0, 1 GiB; it is to grow to 2 GiB: ")
	w.shelves[0].setDown(false)
	if _, err := w.service.Expand(ctx, v.ID.String(), 2<<30, 0); err != nil {
		t.Fatal(err)
	}
	wantCondition(t, observe(t, c, "pvc-1"), v1alpha1.ConditionProvisioned, metav1.ConditionTrue, "LunReady", "e7.0, 2 GiB; identity ")

	w.publish(v, "n1")
	vol = observe(t, c, "pvc-1")
	wantCondition(t, vol, v1alpha1.ConditionAdmitted, metav1.ConditionTrue, "NodeAdmitted", "node n1")
	wantCondition(t, vol, v1alpha1.ConditionAttached, metav1.ConditionFalse, "NoDevice", "node n1 has not made a device")

	report := func(state, message string) {
		err := store.PutNode(ctx, &volume.Node{
			Name: "n1", Interfaces: []volume.Interface{{Name: "eth1", MAC: "52:54:00:00:00:01"}},
			Frontends: []volume.Frontend{{Name: "nbd", Available: true}, {Name: "ublk", Reason: "the kernel has none"}},
			Attachments: []volume.Attachment{{
				VolumeID: v.ID.String(), Device: "/dev/nbd0", Frontend: "nbd", FrontendReason: "asked for", State: state, Message: message,
				Paths: []volume.Path{{Interface: "eth1", RemoteMAC: "52:54:00:00:00:77", State: "up"}, {Interface: "eth2", State: "down"}},
			}, {VolumeID: "e7.9-aaaaaaaaaaaaaaaa", Device: "/dev/nbd9", State: "live"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	report("live", "")
	vol = observe(t, c, "pvc-1")
	if len(vol.Status.Attachments) != 1 || vol.Status.Attachments[0].Device != "/dev/nbd0" || len(vol.Status.Attachments[0].Paths) != 2 {
		t.Errorf("attachments %+v", vol.Status.Attachments)
	}
	wantCondition(t, vol, v1alpha1.ConditionAttached, metav1.ConditionTrue, "Device", "node n1 has it as /dev/nbd0 through nbd (asked for)")
	wantCondition(t, vol, v1alpha1.ConditionHealthy, metav1.ConditionTrue, "Live", "live over eth1 to 52:54:00:00:00:77, eth2 (down)")
	if again := observe(t, c, "pvc-1"); again.ResourceVersion != vol.ResourceVersion {
		t.Error("written although nothing changed")
	}

	var told events
	report("stalled", "no answer for 3s")
	wantCondition(t, observe(t, c, "pvc-1", &told), v1alpha1.ConditionHealthy, metav1.ConditionFalse, "Stalled", "no answer for 3s")
	report("stalled", "no answer for 4s") // the same once more is no news
	observe(t, c, "pvc-1", &told)
	report("failed", "dead")
	wantCondition(t, observe(t, c, "pvc-1", &told), v1alpha1.ConditionHealthy, metav1.ConditionFalse, "Failed", "dead")
	report("live", "")
	observe(t, c, "pvc-1", &told)
	report("attaching", "")
	observe(t, c, "pvc-1", &told)
	report("live", "")
	observe(t, c, "pvc-1", &told)
	if want := []string{"Warning VolumeStalled", "Warning VolumeFailed", "Normal VolumeRecovered"}; !slices.Equal(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
	report("failed", "dead")
	observe(t, c, "pvc-1")

	w.shelves[0].setDown(true)
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err == nil {
		t.Error("unpublished without the shelf")
	}
	w.shelves[0].setDown(false)
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
		t.Fatal(err)
	}
	wantCondition(t, observe(t, c, "pvc-1"), v1alpha1.ConditionAttached, metav1.ConditionTrue, "Device", "but the shelf lets it in no more")
}

// The service decides and the loop tells, on the same object: neither undoes the other.
func TestStatusLoopAndServiceShareTheObject(t *testing.T) {
	c := newFakeClient(t)
	w := newWorldOn(t, provision.NewKubernetesStore(c), newFakeShelf(7))
	ctx := context.Background()
	w.shelves[0].admit = func() { observe(t, c, "pvc-1") } // between the intent and its confirmation
	v := w.create("pvc-1", 4096)
	observe(t, c, "pvc-1")
	w.publish(v, "n1")
	w.wantAdmitted(v, "n1")
	if err := w.service.Unpublish(ctx, v.ID.String(), "n1"); err != nil {
		t.Error(err)
	}
	if err := w.service.Delete(ctx, v.ID.String()); err != nil {
		t.Error(err)
	}
	w.wantObjects(0)
	if _, err := provision.NewStatusLoop(c, &events{}).Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKey{Name: "pvc-1"}}); err != nil {
		t.Errorf("status of a volume that is gone: %v", err)
	}
}

func TestEventsOnClaimAndVolume(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: types.UID("u-1")}}
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AoEVolume{}).WithObjects(claim).Build()
	w := newWorldOn(t, provision.NewKubernetesStore(c), newFakeShelf(7))
	written := record.NewFakeRecorder(10)
	written.IncludeObject = true
	recorder := provision.NewKubernetesRecorder(c, written)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); recorder.Run(ctx) }()
	defer func() { cancel(); <-done }()
	service := provision.NewService(provision.Config{Store: provision.NewKubernetesStore(c), Shelves: w.set, Recorder: recorder})
	v, err := service.Create(ctx, volume.CreateRequest{Name: "pvc-1", Claim: "default/data"})
	if err != nil {
		t.Fatal(err)
	}
	want := func(text string) {
		t.Helper()
		for _, kind := range []string{"AoEVolume", "PersistentVolumeClaim"} {
			select {
			case e := <-written.Events:
				if !strings.Contains(e, text) || !strings.Contains(e, kind) {
					t.Errorf("event %q, want %q on the %s", e, text, kind)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no event on the %s", kind)
			}
		}
	}
	want("Normal VolumeProvisioned volume pvc-1 is e7.0 on shelf 7, 1 GiB; identity " + string(v.ID.Generation))
	w.nodeTells(volume.Node{Name: "n1", Frontends: []volume.Frontend{noUblk, nbd}})
	if _, err := service.Publish(ctx, v.ID.String(), "n1", false); err != nil {
		t.Fatal(err)
	}
	want("Normal NodeAdmitted node n1")
	want("Normal FrontendSelected node n1 makes the device through nbd: auto; not ublk: no /dev/ublk-control")
}
