package provision

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// eventQueue is how many events may wait for the API server; more are dropped, with a log
// line: people are told less rather than volumes made later.
const eventQueue = 256

// claimTimeout is how long finding the claim of an event may take.
const claimTimeout = 10 * time.Second

// KubernetesRecorder writes Kubernetes events, on the claim and on the AoEVolume.
type KubernetesRecorder struct {
	client kubernetes.Interface
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
func NewKubernetesRecorder(c kubernetes.Interface, events record.EventRecorder) *KubernetesRecorder {
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

func (r *KubernetesRecorder) write(ctx context.Context, e queuedEvent) {
	r.events.Event(&corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "AoEVolume", Name: objectName(e.record.Name),
	}, string(e.kind), e.reason, e.message)
	namespace, name, found := strings.Cut(e.record.Claim, "/")
	if !found {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	// kubectl describe shows events by the object's UID, which CSI does not tell.
	claim, err := r.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Claim not told", "claim", e.record.Claim, "reason", e.reason, "err", err)
		return
	}
	r.events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: name, UID: claim.UID,
	}, string(e.kind), e.reason, e.message)
}
