package provision

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// StatusLoop copies what nodes report into the AoEVolumes, for people. Nothing is decided
// on what it writes.
type StatusLoop struct {
	client   client.Client // may read from a cache
	recorder Recorder
}

// AddStatusLoop makes the manager run the loop, on the elected leader only.
func AddStatusLoop(mgr ctrl.Manager, recorder Recorder) error {
	loop := NewStatusLoop(mgr.GetClient(), recorder)
	err := ctrl.NewControllerManagedBy(mgr).
		Named("aoevolume-status").
		For(&v1alpha1.AoEVolume{}).
		Watches(&v1alpha1.AoENode{}, handler.EnqueueRequestsFromMapFunc(loop.volumesOf)).
		Complete(loop)
	if err != nil {
		return fmt.Errorf("status loop: %w", err)
	}
	return nil
}

// NewStatusLoop returns a loop that is driven by hand.
func NewStatusLoop(c client.Client, recorder Recorder) *StatusLoop {
	return &StatusLoop{client: c, recorder: recorder}
}

// Reconcile implements reconcile.Reconciler.
func (l *StatusLoop) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var vol v1alpha1.AoEVolume
	if err := l.client.Get(ctx, req.NamespacedName, &vol); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var nodes v1alpha1.AoENodeList
	if err := l.client.List(ctx, &nodes); err != nil {
		return reconcile.Result{}, err
	}
	before := vol.DeepCopy()
	summarize(&vol, nodes.Items)
	if equality.Semantic.DeepEqual(before.Status, vol.Status) {
		return reconcile.Result{}, nil
	}
	// A patch of what changed here: phase and admissions, which the service writes, are not touched.
	if err := l.client.Status().Patch(ctx, &vol, client.MergeFrom(before)); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	l.tell(before, &vol)
	return reconcile.Result{}, nil
}

// tell makes events of a volume's I/O that waits, fails or goes on again.
func (l *StatusLoop) tell(before, now *v1alpha1.AoEVolume) {
	was := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionHealthy)
	is := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionHealthy)
	if is == nil || was != nil && was.Reason == is.Reason {
		return
	}
	rec, err := recordOf(now)
	if err != nil {
		return // the service tells of a record that it cannot read
	}
	ill := was != nil && (was.Reason == reasonFailed || was.Reason == reasonStalled)
	switch is.Reason {
	case reasonFailed:
		l.recorder.Event(rec, EventWarning, "VolumeFailed", "I/O fails: "+is.Message)
	case reasonStalled:
		l.recorder.Event(rec, EventWarning, "VolumeStalled", "I/O waits: "+is.Message)
	case reasonLive:
		if ill {
			l.recorder.Event(rec, EventNormal, "VolumeRecovered", "I/O goes on: "+is.Message)
		}
	}
}

// volumesOf returns the volumes that a node's report may concern.
func (l *StatusLoop) volumesOf(ctx context.Context, obj client.Object) []reconcile.Request {
	node, ok := obj.(*v1alpha1.AoENode)
	if !ok {
		return nil
	}
	var vols v1alpha1.AoEVolumeList
	if err := l.client.List(ctx, &vols); err != nil {
		klog.FromContext(ctx).Error(err, "Volumes of a node not listed", "node", node.Name)
		return nil
	}
	var requests []reconcile.Request
	for i := range vols.Items {
		vol := &vols.Items[i]
		handle := vol.Spec.Target + "-" + vol.Spec.Generation
		reported := slices.ContainsFunc(node.Status.Attachments, func(a v1alpha1.AoENodeAttachment) bool { return a.VolumeID == handle })
		shown := slices.ContainsFunc(vol.Status.Attachments, func(a v1alpha1.AoEAttachment) bool { return a.Node == node.Name })
		if reported || shown {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(vol)})
		}
	}
	return requests
}
