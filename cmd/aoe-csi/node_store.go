package main

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/driver"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// storeKubernetes is the value of --store that means custom resources; anything else is a directory.
const storeKubernetes = "kubernetes"

// openNodeStore opens where the node reports to, and how it tells pods what happened. The caller calls stop at the end.
func openNodeStore(store, nodeID string) (nodes volume.Nodes, recorder driver.Recorder, stop func(), err error) {
	if store != storeKubernetes {
		files, err := provision.OpenFileStore(store)
		if err != nil {
			return nil, nil, nil, err
		}
		return files, logRecorder{}, func() {}, nil
	}
	config, err := nodeKubeConfig()
	if err != nil {
		return nil, nil, nil, err
	}
	known := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(known); err != nil {
		return nil, nil, nil, err
	}
	resources, err := client.New(config, client.Options{Scheme: known})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: clientset.CoreV1().Events("")})
	events := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: driver.Name, Host: nodeID})
	return provision.NewKubernetesStore(resources), &podRecorder{events: events}, broadcaster.Shutdown, nil
}

// nodeKubeConfig is the pod's own account, or what KUBECONFIG says outside of a cluster.
func nodeKubeConfig() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("find Kubernetes (--store DIR works without): %w", err)
	}
	return config, nil
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
