package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
)

func init() { commands = append(commands, newShelfProxyCommand) }

// Policies for what is on a LUN that a volume takes.
const (
	policyBlank = "blank-only"
	policyWipe  = "wipe"
)

// shelfProxyOptions are the flags of `aoe-csi shelf-proxy`.
type shelfProxyOptions struct {
	shelf          uint16
	slots          string
	interfaces     []string
	store          string
	kubeconfig     string
	namespace      string
	leaderElection bool
	policy         string
	runDir         string
	segment        string
	labels         map[string]string
	synchronous    bool
	listen         string
	metrics        string
	tls            shelf.TLSFiles
}

func newShelfProxyCommand() *cobra.Command {
	var opt shelfProxyOptions
	cmd := &cobra.Command{
		Use:   "shelf-proxy --shelf N --slots 0-15 --interface IF",
		Short: "Make a pool of a shelf that has no management API: vblade, ggaoed, Coraid",
		Long: `Shelf-proxy implements the shelf API for targets that are on the wire already, with in-band AoE commands. A volume takes a
whole LUN, the smallest that fits, if it is blank or may be wiped. Its claim is the target's config string, and who may use
it the target's reservation; a target that forgot them gets them back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runShelfProxy(cmd.Context(), opt) },
	}
	flags := cmd.Flags()
	flags.Uint16Var(&opt.shelf, "shelf", 0, "number of the shelf (AoE major)")
	flags.StringVar(&opt.slots, "slots", "", `slots that volumes may take: "0-15,20"`)
	flags.StringSliceVar(&opt.interfaces, "interface", nil, "Ethernet interfaces that lead to the shelf; none: every network card that is up")
	flags.StringVar(&opt.store, "store", "kubernetes", `where the controller keeps intents, which are only read: "kubernetes" or its directory`)
	flags.StringVar(&opt.kubeconfig, "kubeconfig", "", "access to the cluster; empty: the pod's service account")
	flags.StringVar(&opt.namespace, "namespace", "", "namespace of the proxy's lease")
	flags.BoolVar(&opt.leaderElection, "leader-election", false, "of several proxies for a shelf only the elected one works")
	flags.StringVar(&opt.policy, "claim-policy", policyBlank, `"blank-only" refuses a LUN with anything in its first or last MiB, "wipe" overwrites it`)
	flags.StringVar(&opt.runDir, "run-dir", "/run/aoe-csi", "where the socket shelf-N-api.sock is made")
	flags.StringVar(&opt.segment, "segment", "default", "name of the Ethernet segment, as the driver's topology has it")
	flags.StringToStringVar(&opt.labels, "label", nil, "labels by which a StorageClass's shelfSelector finds the shelf, such as tier=ssd")
	flags.BoolVar(&opt.synchronous, "synchronous", false, "the targets answer a write when it is on stable storage (vblade -s), so that it does no harm if their flush does nothing")
	flags.StringVar(&opt.listen, "listen", "", "address of the shelf API with mutual TLS, such as :7420; empty: on the unix socket only")
	flags.StringVar(&opt.metrics, "metrics", "", "address of Prometheus metrics, plain HTTP, such as :9420: what LUNs there are, and how far scrubbing is; empty: none")
	flags.StringVar(&opt.tls.Cert, "tls-cert", "", "the shelf's certificate, PEM; read again at every connection")
	flags.StringVar(&opt.tls.Key, "tls-key", "", "its private key, PEM")
	flags.StringVar(&opt.tls.CA, "tls-ca", "", "certificate of the authority whose clients are let in, PEM")
	addVerbosity(cmd)
	for _, name := range []string{"shelf", "slots"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	cmd.MarkFlagsRequiredTogether("listen", "tls-cert", "tls-key", "tls-ca")
	return cmd
}

// parseSlots reads "0-15,20".
func parseSlots(text string) ([]uint8, error) {
	var slots []uint8
	seen := map[uint8]bool{}
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 8)
		last, err2 := strconv.ParseUint(to, 10, 8)
		if err != nil || err2 != nil || first > last || last > uint64(aoe.MaxSlot) {
			return nil, fmt.Errorf("slots %q: %q is neither a slot from 0 to %d nor a range of them", text, part, aoe.MaxSlot)
		}
		for n := first; n <= last; n++ {
			if seen[uint8(n)] {
				return nil, fmt.Errorf("slots %q: %d is there twice", text, n)
			}
			seen[uint8(n)] = true
			slots = append(slots, uint8(n))
		}
	}
	return slots, nil
}

// runShelfProxy works until ctx ends, or the lease is lost.
func runShelfProxy(ctx context.Context, opt shelfProxyOptions) error {
	slots, err := parseSlots(opt.slots)
	if err != nil {
		return err
	}
	if opt.leaderElection && opt.namespace == "" {
		return errors.New("--leader-election needs --namespace, for its lease")
	}
	if opt.policy != policyBlank && opt.policy != policyWipe {
		return fmt.Errorf("--claim-policy %q: there are %s and %s", opt.policy, policyBlank, policyWipe)
	}
	var creds credentials.TransportCredentials
	if opt.listen != "" {
		if creds, err = shelf.Credentials(opt.tls); err != nil {
			return err
		}
	}
	if opt.interfaces, err = servedInterfaces(opt.interfaces); err != nil {
		return err
	}
	cfg := shelf.ProxyConfig{
		Shelf: opt.shelf, Slots: slots, Wipe: opt.policy == policyWipe, Synchronous: opt.synchronous,
		UUID: fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "aoe-csi shelf-proxy %s %d", opt.segment, opt.shelf)))[:32],
		Info: shelf.Info{Version: version, Segment: opt.segment, Interfaces: opt.interfaces, Labels: opt.labels},
	}
	if opt.store != "kubernetes" {
		if opt.leaderElection {
			return fmt.Errorf("--store %q is one host's: it cannot elect a leader", opt.store)
		}
		files, err := provision.OpenFileStore(opt.store)
		if err != nil {
			return err
		}
		cfg.Intents = files
		return errors.Join(serveShelfProxy(ctx, opt, cfg, creds), files.Close())
	}
	cluster, err := newClusterAccess(opt.kubeconfig)
	if err != nil {
		return err
	}
	cfg.Intents = provision.NewKubernetesStore(cluster.client)
	if !opt.leaderElection {
		return serveShelfProxy(ctx, opt, cfg, creds)
	}
	return leadShelfProxy(ctx, opt, cluster.clientset.CoordinationV1(), func(ctx context.Context) error { return serveShelfProxy(ctx, opt, cfg, creds) })
}

// leadShelfProxy waits to be elected and works until ctx ends or the lease is lost, which ends the process: it is started again. When its
// work has ended it gives the lease back, never before.
func leadShelfProxy(ctx context.Context, opt shelfProxyOptions, leases coordinationv1.LeasesGetter, work func(context.Context) error) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: opt.namespace, Name: "aoe-csi-shelf-proxy-" + strconv.Itoa(int(opt.shelf))},
		Client:    leases,
		// With the host's network two pods of a node have the same name, and both are process 1.
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "-" + rand.Text()},
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began, result := make(chan struct{}), make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: leaseRenew, RetryPeriod: leaseRetry, ReleaseOnCancel: false,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { close(began); result <- work(ctx); cancel() },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	lost := ctx.Err() == nil
	select {
	case <-began:
		err = <-result // the work ends with the lease
	default: // never elected
		return err
	}
	if lost {
		return errors.Join(err, errors.New("the lease was lost: another proxy works for the shelf"))
	}
	return errors.Join(err, giveBack(lock))
}

// giveBack lets another proxy have the lease at once, if it is still this one's.
func giveBack(lock *resourcelock.LeaseLock) error {
	ctx, cancel := context.WithTimeout(context.Background(), leaseRetry)
	defer cancel()
	now, _, err := lock.Get(ctx)
	if err != nil || now.HolderIdentity != lock.Identity() {
		return err
	}
	now.HolderIdentity, now.LeaseDurationSeconds = "", 1
	return lock.Update(ctx, *now)
}

// serveShelfProxy runs the proxy and its API until ctx ends.
func serveShelfProxy(ctx context.Context, opt shelfProxyOptions, cfg shelf.ProxyConfig, creds credentials.TransportCredentials) (err error) {
	if cfg.Client, err = inband.NewClient(inband.Config{Interfaces: opt.interfaces}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cfg.Client.Close()) }()
	if err := os.MkdirAll(opt.runDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	local, err := shelf.ListenUnix(filepath.Join(opt.runDir, "shelf-"+strconv.Itoa(int(opt.shelf))+"-api.sock"))
	if err != nil {
		return err
	}
	proxy := shelf.NewProxy(cfg)
	defer proxy.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { proxy.Run(ctx); return nil })
	group.Go(func() error { return shelf.Serve(ctx, local, proxy, nil) })
	if opt.listen != "" {
		remote, err := net.Listen("tcp", opt.listen)
		if err != nil {
			return errors.Join(fmt.Errorf("listen for the shelf API: %w", err), local.Close())
		}
		group.Go(func() error { return shelf.Serve(ctx, remote, proxy, creds) })
	}
	if opt.metrics != "" {
		group.Go(func() error { serveMetrics(ctx, opt.metrics, proxy); return nil })
	}
	klog.InfoS("Shelf's proxy serves", "shelf", opt.shelf, "slots", opt.slots, "policy", opt.policy, "interfaces", opt.interfaces, "api", opt.listen)
	return group.Wait()
}
