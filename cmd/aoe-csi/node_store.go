package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/driver"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// storeKubernetes is the value of --store that means custom resources; anything else is a directory.
const storeKubernetes = "kubernetes"

// openNodeStore opens where the node reports to, and how it tells people what happened. The caller calls stop at the end.
func openNodeStore(store, kubeconfig, nodeID string) (nodes volume.Nodes, recorder driver.Recorder, stop func(), err error) {
	if store != storeKubernetes {
		files, err := provision.OpenFileStore(store)
		if err != nil {
			return nil, nil, nil, err
		}
		return files, logRecorder{}, func() {}, nil
	}
	cluster, err := newClusterAccess(kubeconfig)
	if err != nil {
		return nil, nil, nil, err
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: cluster.clientset.CoreV1().Events("")})
	events := broadcaster.NewRecorder(cluster.scheme, corev1.EventSource{Component: driver.Name, Host: nodeID})
	kubernetes := provision.NewKubernetesStore(cluster.client)
	volumes := provision.NewKubernetesRecorder(cluster.client, events)
	ctx, cancel := context.WithCancel(context.Background())
	go volumes.Run(ctx) // ends with stop
	stop = func() {
		cancel()
		broadcaster.Shutdown()
	}
	return kubernetes, &eventRecorder{ctx: ctx, events: events, store: kubernetes, volumes: volumes}, stop, nil
}

// eventRecorder writes Kubernetes events. They are sent in the background, as long as ctx lasts.
type eventRecorder struct {
	ctx     context.Context // of what it does in the background, which is nobody's call
	events  record.EventRecorder
	store   volume.Store
	volumes provision.Recorder
}

// PodEvent implements driver.Recorder.
func (r *eventRecorder) PodEvent(pod driver.Pod, reason, message string) {
	r.events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
	}, corev1.EventTypeNormal, reason, message)
}

// VolumeLoss implements driver.Recorder.
func (r *eventRecorder) VolumeLoss(id, reason, message string) {
	klog.InfoS("Data may be lost", "volume", id, "reason", reason, "message", message)
	go func() { // ends with the look-ups, or ctx
		ctx, cancel := context.WithTimeout(r.ctx, lossLookup)
		defer cancel()
		rec, err := recordOf(ctx, r.store, id)
		if err != nil {
			klog.ErrorS(err, "Event not written: the volume's record cannot be read", "volume", id, "reason", reason)
			return
		}
		r.volumes.Event(rec, provision.EventWarning, reason, message)
	}()
}

// lossLookup bounds the search for a volume's record.
const lossLookup = 30 * time.Second

// recordOf finds the volume with this handle by the owner of its address.
func recordOf(ctx context.Context, store volume.Store, handle string) (*volume.Record, error) {
	id, err := volume.ParseID(handle)
	if err != nil {
		return nil, err
	}
	slot, err := store.GetSlot(ctx, id.Addr)
	if err != nil {
		return nil, err
	}
	rec, err := store.GetVolume(ctx, slot.VolumeName)
	if err == nil && rec.ID != id {
		err = fmt.Errorf("%w: %s is another volume's address by now", volume.ErrNotFound, id.Addr)
	}
	return rec, err
}

// logRecorder is the Recorder without Kubernetes.
type logRecorder struct{}

// PodEvent implements driver.Recorder.
func (logRecorder) PodEvent(pod driver.Pod, reason, message string) {
	klog.InfoS("Event", "pod", klog.KRef(pod.Namespace, pod.Name), "reason", reason, "message", message)
}

// VolumeLoss implements driver.Recorder.
func (logRecorder) VolumeLoss(id, reason, message string) {
	klog.InfoS("Event", "volume", id, "reason", reason, "message", message)
}
