package main

import (
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

// openNodeStore opens where the node reports to, and how it tells pods what happened. The caller calls stop at the end.
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
	return provision.NewKubernetesStore(cluster.client), &podRecorder{events: events}, broadcaster.Shutdown, nil
}

// podRecorder writes events on pods. They are sent in the background.
type podRecorder struct {
	events record.EventRecorder
}

// PodEvent implements driver.Recorder.
func (r *podRecorder) PodEvent(pod driver.Pod, reason, message string) {
	r.events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
	}, corev1.EventTypeNormal, reason, message)
}

// logRecorder is the Recorder without Kubernetes.
type logRecorder struct{}

// PodEvent implements driver.Recorder.
func (logRecorder) PodEvent(pod driver.Pod, reason, message string) {
	klog.InfoS("Event", "pod", klog.KRef(pod.Namespace, pod.Name), "reason", reason, "message", message)
}
