package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/driver"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func init() { commands = append(commands, newControllerCommand) }

// Intervals of the controller's background work.
const (
	shelfRound  = 30 * time.Second
	repairRound = time.Minute
)

// controllerOptions are the flags of the subcommand.
type controllerOptions struct {
	endpoint       string
	store          string
	namespace      string
	kubeconfig     string
	shelves        []string
	shelfServices  []string
	shelfTimeout   time.Duration
	tlsSecrets     string
	tlsCA          string
	tlsCert        string
	tlsKey         string
	leaderElection bool
}

func newControllerCommand() *cobra.Command {
	var opt controllerOptions
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Serve the CSI controller: make, delete and publish volumes on shelves",
		Long: `Controller answers the CSI side-cars. It writes the intent for every volume to the store and asks
shelves through their API; it never touches the storage network.`,
		Example: `  aoe-csi controller --endpoint unix:///csi/csi.sock --store kubernetes --namespace aoe-csi \
    --shelf-service aoe-csi/aoe-csi-shelves --tls-secret-namespace aoe-csi --leader-election
  aoe-csi controller --endpoint unix:///tmp/csi.sock --store /var/lib/aoe-csi/controller \
    --shelf unix:///run/aoe-csi/shelf-7-api.sock`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			return opt.check()
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), opt) },
	}
	flags := cmd.Flags()
	flags.StringVar(&opt.endpoint, "endpoint", "unix:///csi/csi.sock", "unix socket to serve CSI on")
	flags.StringVar(&opt.store, "store", "kubernetes", `where intents are kept: "kubernetes" or a directory`)
	flags.StringVar(&opt.namespace, "namespace", "", "namespace of the controller's lease")
	flags.StringVar(&opt.kubeconfig, "kubeconfig", "", "access to the cluster; empty: the pod's service account")
	flags.StringArrayVar(&opt.shelves, "shelf", nil, "address of a shelf's API, tcp://host:port or unix:///path; may be repeated")
	flags.StringArrayVar(&opt.shelfServices, "shelf-service", nil, "headless service whose end points are shelves, namespace/name; may be repeated")
	flags.DurationVar(&opt.shelfTimeout, "shelf-timeout", provision.DefaultTimeout, "how long a shelf may take to answer a call")
	flags.StringVar(&opt.tlsSecrets, "tls-secret-namespace", "", "namespace of the secrets with the certificates of the shelf API; they are made if there are none")
	flags.StringVar(&opt.tlsCA, "tls-ca", "", "authority that signed the shelves' certificates, PEM; read again at every connection")
	flags.StringVar(&opt.tlsCert, "tls-cert", "", "the controller's certificate for shelves, PEM")
	flags.StringVar(&opt.tlsKey, "tls-key", "", "its private key, PEM")
	flags.BoolVar(&opt.leaderElection, "leader-election", false, "run background loops only in the elected one of several controllers")
	addVerbosity(cmd)
	cmd.MarkFlagsRequiredTogether("tls-ca", "tls-cert", "tls-key")
	cmd.MarkFlagsMutuallyExclusive("tls-ca", "tls-secret-namespace")
	return cmd
}

func (o *controllerOptions) inCluster() bool { return o.store == "kubernetes" }

// check finds what cannot work before anything is started.
func (o *controllerOptions) check() error {
	var wrong []error
	if len(o.shelves) == 0 && len(o.shelfServices) == 0 {
		wrong = append(wrong, errors.New("no shelf: give --shelf or --shelf-service"))
	}
	for _, address := range o.shelves {
		err := provision.ParseAddress(address)
		if err == nil && strings.HasPrefix(address, "tcp:") && o.tlsSecrets == "" && o.tlsCA == "" {
			err = fmt.Errorf("--shelf %s: a shelf on a network needs certificates: give --tls-ca, --tls-cert and --tls-key, or --tls-secret-namespace", address)
		}
		wrong = append(wrong, err)
	}
	for _, service := range o.shelfServices {
		_, _, err := splitService(service)
		wrong = append(wrong, err)
	}
	if len(o.shelfServices) > 0 && o.tlsSecrets == "" && o.tlsCA == "" {
		wrong = append(wrong, errors.New("--shelf-service needs certificates: give --tls-secret-namespace, or --tls-ca, --tls-cert and --tls-key"))
	}
	if !o.inCluster() && (o.leaderElection || o.store == "") {
		wrong = append(wrong, fmt.Errorf("--store %q is one controller's: it cannot elect a leader", o.store))
	}
	if o.leaderElection && o.namespace == "" {
		wrong = append(wrong, errors.New("--leader-election needs --namespace, for its lease"))
	}
	return errors.Join(wrong...)
}

// splitService reads the value of --shelf-service.
func splitService(text string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("--shelf-service %q is not namespace/name", text)
	}
	return namespace, name, nil
}

// runController serves until ctx ends.
func runController(ctx context.Context, opt controllerOptions) error {
	group, ctx := errgroup.WithContext(ctx)
	var cluster *clusterAccess
	if opt.inCluster() || len(opt.shelfServices) > 0 || opt.tlsSecrets != "" {
		var err error
		if cluster, err = newClusterAccess(opt.kubeconfig); err != nil {
			return err
		}
	}
	creds, err := opt.credentials(ctx, group, cluster)
	if err != nil {
		return err
	}
	sources, err := shelfSources(cluster, opt.shelves, opt.shelfServices)
	if err != nil {
		return err
	}
	shelves := provision.NewShelves(provision.ShelvesConfig{Sources: sources, Credentials: creds, Timeout: opt.shelfTimeout})
	defer func() {
		if err := shelves.Close(); err != nil {
			klog.Background().Error(err, "Connections to shelves not closed")
		}
	}()
	group.Go(func() error { shelves.Run(ctx, shelfRound); return nil })

	config := provision.Config{Shelves: shelves}
	var store volume.Store
	if opt.inCluster() {
		store = provision.NewKubernetesStore(cluster.client)
		config.Recorder = cluster.recorder(ctx, group)
	} else {
		files, err := provision.OpenFileStore(opt.store)
		if err != nil {
			return err
		}
		if err := files.Lock(); err != nil {
			return err
		}
		defer func() {
			if err := files.Close(); err != nil {
				klog.Background().Error(err, "Store not closed")
			}
		}()
		store = files
	}
	config.Store = store
	service := provision.NewService(config)
	if opt.inCluster() {
		group.Go(func() error { cluster.background(ctx, opt, service, config.Recorder); return nil })
	} else {
		group.Go(func() error { service.RunRepair(ctx, repairRound); return nil })
	}
	server := driver.NewServer(driver.Config{Version: version, Controller: driver.NewController(service), Probe: service.Ready})
	group.Go(func() error { return server.ListenAndServe(ctx, opt.endpoint) })
	klog.FromContext(ctx).Info("Controller serves", "version", version, "endpoint", opt.endpoint, "store", opt.store)
	return group.Wait()
}

// shelfSources are where shelves are looked for. cluster may be nil if there are no services.
func shelfSources(cluster *clusterAccess, addresses, services []string) ([]provision.Source, error) {
	sources := []provision.Source{provision.StaticSource(addresses...)}
	for _, service := range services {
		namespace, name, err := splitService(service)
		if err != nil {
			return nil, err
		}
		sources = append(sources, provision.ServiceSource(cluster.clientset, namespace, name))
	}
	return sources, nil
}

// credentials returns the controller's side of mutual TLS, nil if there is none.
func (o *controllerOptions) credentials(ctx context.Context, group *errgroup.Group, cluster *clusterAccess) (credentials.TransportCredentials, error) {
	switch {
	case o.tlsCA != "":
		source := provision.FileKeyPair(o.tlsCA, o.tlsCert, o.tlsKey)
		if _, err := source(); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		return provision.NewCredentials(source), nil
	case o.tlsSecrets != "":
		certs := newCertificates(cluster.clientset, o.tlsSecrets)
		group.Go(func() error { certs.Run(ctx); return nil })
		return provision.NewCredentials(certs.KeyPair), nil
	}
	return nil, nil
}
