package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
)

// leaseName is the lease of the controllers' background loops.
const leaseName = "aoe-csi-controller"

// Times of the lease: an API server that is slow for some seconds changes no leader.
const (
	leaseDuration = 30 * time.Second
	leaseRenew    = 20 * time.Second
	leaseRetry    = 4 * time.Second
	leadPause     = 5 * time.Second
)

// Requests to the API server, per second: a volume takes about ten, and many may come at
// the same time.
const (
	apiQPS   = 100
	apiBurst = 200
)

// clusterAccess holds the clients of one cluster.
type clusterAccess struct {
	config    *rest.Config
	scheme    *runtime.Scheme
	client    client.Client // reads from the API server, never from a cache
	clientset kubernetes.Interface
}

func newClusterAccess(kubeconfig string) (*clusterAccess, error) {
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
	}
	access.QPS, access.Burst = apiQPS, apiBurst
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	direct, err := client.New(access, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
	}
	clientset, err := kubernetes.NewForConfig(access)
	if err != nil {
		return nil, fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
	}
	return &clusterAccess{config: access, scheme: scheme, client: direct, clientset: clientset}, nil
}

// recorder returns a recorder of events that ends with ctx.
func (c *clusterAccess) recorder(ctx context.Context, group *errgroup.Group) provision.Recorder {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.clientset.CoreV1().Events("")})
	source := corev1.EventSource{Component: "aoe-csi-controller"}
	recorder := provision.NewKubernetesRecorder(c.client, broadcaster.NewRecorder(c.scheme, source))
	group.Go(func() error {
		defer broadcaster.Shutdown()
		recorder.Run(ctx)
		return nil
	})
	return recorder
}

// background runs, until ctx ends, the loops that one controller at a time runs: the status
// of volumes, and repairs. A controller that loses its lease goes on serving CSI, where
// the store sees to it that nothing is decided twice, and stands for election again.
func (c *clusterAccess) background(ctx context.Context, opt controllerOptions, service *provision.Service, recorder provision.Recorder) {
	ctrl.SetLogger(klog.Background())
	for ctx.Err() == nil {
		if err := c.lead(ctx, opt, service, recorder); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Background loops ended, they are started again", "pause", leadPause)
		}
		select {
		case <-ctx.Done():
		case <-time.After(leadPause):
		}
	}
}

// lead waits to be elected and runs the loops until the lease is lost or ctx ends.
func (c *clusterAccess) lead(ctx context.Context, opt controllerOptions, service *provision.Service, recorder provision.Recorder) error {
	lease, renew, retry := leaseDuration, leaseRenew, leaseRetry
	sameName := true
	mgr, err := ctrl.NewManager(c.config, ctrl.Options{
		Scheme:                        c.scheme,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		Controller:                    config.Controller{SkipNameValidation: &sameName},
		LeaderElection:                opt.leaderElection,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       opt.namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &lease,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
	})
	if err != nil {
		return err
	}
	if err := provision.AddStatusLoop(mgr, recorder); err != nil {
		return err
	}
	err = mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		service.RunRepair(ctx, repairRound)
		return nil
	}))
	if err != nil {
		return err
	}
	return mgr.Start(ctx)
}
