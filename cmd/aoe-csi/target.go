package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/internal/heap"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

func init() { commands = append(commands, newTargetCommand) }

// targetOptions are the flags of `aoe-csi target`.
type targetOptions struct {
	shelf      uint16
	shelfGiven bool
	node       string
	kubeconfig string
	interfaces []string
	dir        string
	runDir     string
	segment    string
	labels     map[string]string
	listen     string
	tls        shelf.TLSFiles
	lockMemory bool
}

func newTargetCommand() *cobra.Command {
	var opt targetOptions
	cmd := &cobra.Command{
		Use:   "target (--shelf N | --shelf-from-node NODE) [--interface IF,…] --dir DIR",
		Short: "Serve a shelf: up to 255 LUNs kept in a directory",
		Long: `Target serves the LUNs in a directory over ATA over Ethernet, and to initiators on the same host over a
unix socket, until it gets SIGTERM. LUNs are made and removed through the shelf API: by a controller, or with
"aoe-csi lun". The directory remembers the shelf's number and cannot be given another one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt.shelfGiven = cmd.Flags().Changed("shelf")
			return runTarget(cmd.Context(), opt)
		},
	}
	flags := cmd.Flags()
	flags.Uint16Var(&opt.shelf, "shelf", 0, "number of the shelf (AoE major), 0 to 65534, unique on the segment; not needed once the directory has one")
	flags.StringVar(&opt.node, "shelf-from-node", "", "read the number from the label "+shelfLabel+" of this Kubernetes node")
	flags.StringVar(&opt.kubeconfig, "kubeconfig", "", "with --shelf-from-node: access to the cluster; empty: the pod's service account")
	flags.StringSliceVar(&opt.interfaces, "interface", nil, "Ethernet interfaces to serve; none: every network card that is up")
	flags.StringVar(&opt.dir, "dir", "/var/lib/aoe-csi/target", "where LUNs and their metadata are")
	flags.StringVar(&opt.runDir, "run-dir", "/run/aoe-csi", "where the sockets shelf-N.sock and shelf-N-api.sock are made")
	flags.StringToStringVar(&opt.labels, "label", nil, "labels by which a StorageClass's shelfSelector finds the shelf, such as tier=ssd")
	flags.StringVar(&opt.segment, "segment", "default", "name of the Ethernet segment, as the driver's topology has it")
	flags.StringVar(&opt.listen, "listen", "", "address of the shelf API with mutual TLS, such as :7420; empty: on the unix socket only")
	flags.StringVar(&opt.tls.Cert, "tls-cert", "", "the shelf's certificate, PEM; read again at every connection")
	flags.StringVar(&opt.tls.Key, "tls-key", "", "its private key, PEM")
	flags.StringVar(&opt.tls.CA, "tls-ca", "", "certificate of the authority whose clients are let in, PEM")
	flags.BoolVar(&opt.lockMemory, "lock-memory", true, "stay in memory and serve this host's own write-back, even when memory is short")
	addVerbosity(cmd)
	addProfile(cmd)
	cmd.MarkFlagsMutuallyExclusive("shelf", "shelf-from-node")
	cmd.MarkFlagsRequiredTogether("listen", "tls-cert", "tls-key", "tls-ca")
	return cmd
}

// addVerbosity gives a command klog's --v.
func addVerbosity(cmd *cobra.Command) {
	set := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(set)
	cmd.Flags().AddGoFlag(set.Lookup("v"))
}

// runTarget serves until ctx ends.
func runTarget(ctx context.Context, opt targetOptions) (err error) {
	number, err := opt.number(ctx)
	if err != nil {
		return err
	}
	// The certificates are looked at first: a wrong path should not start anything.
	var creds credentials.TransportCredentials
	if opt.listen != "" {
		if creds, err = shelf.Credentials(opt.tls); err != nil {
			return err
		}
	}
	if opt.interfaces, err = servedInterfaces(opt.interfaces); err != nil {
		return err
	}
	if err := os.MkdirAll(opt.runDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if opt.lockMemory {
		keepInMemory()
	}
	// The loops of the interfaces and of the local socket keep what they run with while they wait briefly (package brief).
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + len(opt.interfaces) + 1)
	s, err := target.Open(target.Config{Dir: opt.dir, Number: number})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := probeInterfaces(ctx, s, opt.interfaces); err != nil {
		return err
	}
	return serveTarget(ctx, s, opt, creds)
}

// keepInMemory readies the process for a host that uses its own volumes: what frees memory there may have to go through
// this process first.
func keepInMemory() {
	becomeFlusher() // may start the process anew
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		klog.InfoS("Memory is not locked: the target may wait for its own pages to be read (needs CAP_IPC_LOCK)", "err", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		klog.InfoS("The target can be killed when memory runs out (needs CAP_SYS_RESOURCE)", "err", err)
	}
	realtimeWhenShort()
}

// number is the shelf's, nil for the one that the directory has.
func (o *targetOptions) number(ctx context.Context) (*uint16, error) {
	if o.shelfGiven {
		return &o.shelf, nil
	}
	if o.node == "" {
		return nil, nil
	}
	number, err := shelfOfNode(ctx, o.kubeconfig, o.node)
	if errors.Is(err, errNoCluster) {
		klog.ErrorS(err, "The node's label cannot be read, the directory's shelf number counts", "node", o.node)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &number, nil
}

// probeInterfaces refuses a shelf number that is in use. An interface that is down cannot tell; it is asked again when it is up.
func probeInterfaces(ctx context.Context, s *target.Shelf, interfaces []string) error {
	var group errgroup.Group
	for _, name := range interfaces {
		group.Go(func() error {
			err := probeInterface(ctx, s, name, interfaces)
			if errors.Is(err, link.ErrDown) {
				klog.InfoS("Interface is down, its LUNs will be served when it is up", "interface", name, "err", err)
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

func probeInterface(ctx context.Context, s *target.Shelf, name string, served []string) error {
	l, err := link.OpenPacket(name, link.PacketConfig{Filter: link.FilterResponses(target.ProbeShard)})
	if err != nil {
		return err
	}
	return errors.Join(s.Probe(ctx, l, macsOf(served)), l.Close())
}

// macsOf are the addresses of this process's own interfaces.
func macsOf(interfaces []string) []aoe.MAC {
	var macs []aoe.MAC
	for _, name := range interfaces {
		if i, err := net.InterfaceByName(name); err == nil && len(i.HardwareAddr) == len(aoe.MAC{}) {
			macs = append(macs, aoe.MAC(i.HardwareAddr))
		}
	}
	return macs
}

// serveTarget runs every listener until ctx ends or one of them fails for good.
func serveTarget(ctx context.Context, s *target.Shelf, opt targetOptions, creds credentials.TransportCredentials) error {
	name := filepath.Join(opt.runDir, "shelf-"+strconv.Itoa(int(s.Number())))
	frames, err := link.ListenLocal(name + ".sock")
	if err != nil {
		return err
	}
	local, err := shelf.ListenUnix(name + "-api.sock")
	if err != nil {
		return errors.Join(err, frames.Close())
	}
	var remote net.Listener
	if opt.listen != "" {
		if remote, err = net.Listen("tcp", opt.listen); err != nil {
			return errors.Join(fmt.Errorf("listen for the shelf API: %w", err), local.Close(), frames.Close())
		}
	}
	var macs []string // hints for those who attach
	for _, mac := range macsOf(opt.interfaces) {
		macs = append(macs, mac.String())
	}
	api := shelf.NewServer(s, shelf.Info{Version: version, Segment: opt.segment, Interfaces: opt.interfaces, Labels: opt.labels, MACs: macs, Allocations: heap.Allocations})
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range opt.interfaces {
		group.Go(func() error { return serveInterface(ctx, s, name, opt.interfaces) })
	}
	group.Go(func() error { return s.ServeLocal(ctx, frames) })
	group.Go(func() error { return shelf.Serve(ctx, local, api, nil) })
	if remote != nil {
		group.Go(func() error { return shelf.Serve(ctx, remote, api, creds) })
	}
	klog.InfoS("Shelf is served", "shelf", s.Number(), "uuid", s.UUID(), "dir", opt.dir, "interfaces", opt.interfaces, "api", opt.listen)
	err = group.Wait()
	klog.InfoS("Shelf stops", "shelf", s.Number(), "frames", s.Stats())
	return err
}
