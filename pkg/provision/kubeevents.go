package provision

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// eventQueue is how many events may wait for the API server; more are dropped, with a log
// line: people are told less rather than volumes made later.
const eventQueue = 256

// lookupTimeout is how long finding the objects of an event may take.
const lookupTimeout = 10 * time.Second

// KubernetesRecorder writes Kubernetes events, on the claim and on the AoEVolume.
type KubernetesRecorder struct {
	client client.Client
	events record.EventRecorder
	queue  chan queuedEvent
}

type queuedEvent struct {
	record          volume.Record
	kind            EventType
	reason, message string
}

var _ Recorder = (*KubernetesRecorder)(nil)

// NewKubernetesRecorder returns a recorder that hands its events to events; Run has to
// run for them to arrive.
func NewKubernetesRecorder(c client.Client, events record.EventRecorder) *KubernetesRecorder {
	return &KubernetesRecorder{client: c, events: events, queue: make(chan queuedEvent, eventQueue)}
}

// Event implements Recorder.
func (r *KubernetesRecorder) Event(rec *volume.Record, kind EventType, reason, message string) {
	select {
	case r.queue <- queuedEvent{*rec, kind, reason, message}:
	default:
		klog.Background().Info("Event dropped, too many are waiting", "volume", rec.Name, "reason", reason, "message", message)
	}
}

// Run writes events until ctx ends.
func (r *KubernetesRecorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.write(ctx, e)
		}
	}
}

// write tells the volume and its claim. kubectl describe finds events by the object's UID,
// which the record does not have.
func (r *KubernetesRecorder) write(ctx context.Context, e queuedEvent) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	r.tell(ctx, e, &v1alpha1.AoEVolume{}, v1alpha1.GroupVersion.String(), "AoEVolume", client.ObjectKey{Name: objectName(e.record.Name)})
	if namespace, name, found := strings.Cut(e.record.Claim, "/"); found {
		r.tell(ctx, e, &corev1.PersistentVolumeClaim{}, "v1", "PersistentVolumeClaim", client.ObjectKey{Namespace: namespace, Name: name})
	}
}

func (r *KubernetesRecorder) tell(ctx context.Context, e queuedEvent, obj client.Object, version, kind string, key client.ObjectKey) {
	if err := r.client.Get(ctx, key, obj); err != nil {
		// Gone, as a claim is when its volume is deleted: there is nobody to tell.
		klog.FromContext(ctx).V(2).Info("Event not told", "kind", kind, "object", key.String(), "reason", e.reason, "err", err)
		return
	}
	r.events.Event(&corev1.ObjectReference{
		APIVersion: version, Kind: kind, Namespace: key.Namespace, Name: key.Name, UID: obj.GetUID(),
	}, string(e.kind), e.reason, e.message)
}
