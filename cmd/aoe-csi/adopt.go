package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/driver"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func init() { commands = append(commands, newAdoptCommand) }

// adoptOptions are the flags of `aoe-csi adopt`.
type adoptOptions struct {
	name       string
	claim      string
	fsType     string
	store      string
	kubeconfig string
	shelf      string
	service    string
	tlsSecrets string
	tlsCA      string
	tlsCert    string
	tlsKey     string
}

func newAdoptCommand() *cobra.Command {
	var opt adoptOptions
	cmd := &cobra.Command{
		Use:   "adopt TARGET --shelf ADDRESS|--shelf-service NAMESPACE/NAME",
		Short: "Make a LUN with data on it a volume, without touching a byte",
		Long: `Adopt writes the intent for a LUN in the pool of a shelf-proxy, has it claimed on the wire, and prints a PersistentVolume for
"kubectl apply". Nothing on the LUN is read or written. Whoever used it until now must have let it go: it is reserved.`,
		Example: `  kubectl exec -n aoe-csi deploy/aoe-csi-controller -c controller -- /aoe-csi adopt e9.3 --shelf-service aoe-csi/aoe-csi-pools \
    --tls-secret-namespace aoe-csi --claim shop/data | kubectl apply -f -
  aoe-csi adopt e9.3 --shelf tcp://10.0.0.9:7420 --tls-ca ca.crt --tls-cert tls.crt --tls-key tls.key --claim shop/data | kubectl apply -f -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := aoe.ParseAddr(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return runAdopt(ctx, cmd.OutOrStdout(), addr, opt)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opt.name, "name", "", "name of the volume (default adopted-e9-3)")
	flags.StringVar(&opt.claim, "claim", "", "the only claim that may have it, namespace/name; empty: any that fits")
	flags.StringVar(&opt.fsType, "fs-type", "ext4", "the file system that is on it")
	flags.StringVar(&opt.store, "store", "kubernetes", `where the controller keeps intents: "kubernetes", or its directory while it is stopped`)
	flags.StringVar(&opt.kubeconfig, "kubeconfig", "", "access to the cluster; empty: the pod's service account")
	flags.StringVar(&opt.shelf, "shelf", "", "address of the proxy's shelf API, tcp://host:port or unix:///path")
	flags.StringVar(&opt.tlsCA, "tls-ca", "", "authority that signed the shelf's certificate, PEM")
	flags.StringVar(&opt.tlsCert, "tls-cert", "", "the controller's certificate for shelves, PEM")
	flags.StringVar(&opt.tlsKey, "tls-key", "", "its private key, PEM")
	flags.StringVar(&opt.service, "shelf-service", "", "instead of its address: headless service that leads to it, namespace/name")
	flags.StringVar(&opt.tlsSecrets, "tls-secret-namespace", "", "instead of files: namespace of the controller's secret with them")
	cmd.MarkFlagsOneRequired("shelf", "shelf-service")
	cmd.MarkFlagsMutuallyExclusive("shelf", "shelf-service")
	cmd.MarkFlagsRequiredTogether("tls-ca", "tls-cert", "tls-key")
	cmd.MarkFlagsMutuallyExclusive("tls-ca", "tls-secret-namespace")
	return cmd
}

func runAdopt(ctx context.Context, out io.Writer, addr aoe.Addr, opt adoptOptions) (err error) {
	if opt.name == "" {
		opt.name = "adopted-" + strings.ReplaceAll(addr.String(), ".", "-")
	}
	if namespace, name, ok := strings.Cut(opt.claim, "/"); opt.claim != "" && (!ok || namespace == "" || name == "") {
		return fmt.Errorf("--claim %q is not namespace/name", opt.claim)
	}
	if opt.fsType != "ext4" && opt.fsType != "xfs" {
		return fmt.Errorf("--fs-type %q: ext4 and xfs are supported", opt.fsType)
	}
	var cluster *clusterAccess
	if opt.store == "kubernetes" || opt.service != "" || opt.tlsSecrets != "" {
		if cluster, err = newClusterAccess(opt.kubeconfig); err != nil {
			return err
		}
	}
	shelves, err := opt.shelves(ctx, cluster)
	if err != nil {
		return err
	}
	store, closeStore, err := opt.open(cluster)
	if err != nil {
		return errors.Join(err, shelves.Close())
	}
	defer func() { err = errors.Join(err, shelves.Close(), closeStore()) }()
	v, err := provision.NewService(provision.Config{Store: store, Shelves: shelves}).Adopt(ctx, provision.AdoptRequest{
		Name: opt.name, Addr: addr, Claim: opt.claim, Parameters: volume.Parameters{Shelf: &addr.Shelf, FSType: opt.fsType, Frontend: "auto"},
	})
	if err != nil {
		return err
	}
	return printAdopted(out, v, opt)
}

// shelves returns the way to the proxy, with the controller's certificate.
func (o *adoptOptions) shelves(ctx context.Context, cluster *clusterAccess) (*provision.Shelves, error) {
	var addresses, services []string
	if o.service != "" {
		services = []string{o.service}
	} else {
		if err := provision.ParseAddress(o.shelf); err != nil {
			return nil, err
		}
		addresses = []string{o.shelf}
	}
	sources, err := shelfSources(cluster, addresses, services)
	if err != nil {
		return nil, err
	}
	config := provision.ShelvesConfig{Sources: sources}
	switch {
	case o.tlsCA != "":
		config.Credentials = provision.NewCredentials(provision.FileKeyPair(o.tlsCA, o.tlsCert, o.tlsKey))
	case o.tlsSecrets != "":
		certs := newCertificates(cluster.clientset, o.tlsSecrets)
		if err := certs.read(ctx); err != nil {
			return nil, err
		}
		config.Credentials = provision.NewCredentials(certs.KeyPair)
	}
	return provision.NewShelves(config), nil
}

// open returns the store of intents. A directory is one process's at a time.
func (o *adoptOptions) open(cluster *clusterAccess) (volume.Store, func() error, error) {
	if o.store == "kubernetes" {
		return provision.NewKubernetesStore(cluster.client), func() error { return nil }, nil
	}
	files, err := provision.OpenFileStore(o.store)
	if err != nil {
		return nil, nil, err
	}
	if err := files.Lock(); err != nil {
		return nil, nil, errors.Join(err, files.Close())
	}
	return files, files.Close, nil
}

// printAdopted writes the PersistentVolume. It retains: deleting it by mistake must not scrub what was there before.
func printAdopted(out io.Writer, v *volume.Volume, opt adoptOptions) error {
	pv := &corev1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{Name: opt.name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.SizeBytes, resource.BinarySI)},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driver.Name, VolumeHandle: v.ID.String(), FSType: opt.fsType,
				VolumeAttributes: map[string]string{driver.ContextFSType: opt.fsType},
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: driver.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{v.Segment}}},
			}}}},
		},
	}
	if namespace, name, ok := strings.Cut(opt.claim, "/"); ok {
		pv.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: name}
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(pv)
}
