package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/driver"
	"github.com/aoe-csi/aoe-csi/pkg/mount"
)

func init() { commands = append(commands, newNodeCommand) }

// nodeOptions are the flags of the node plugin.
type nodeOptions struct {
	endpoint           string
	nodeID             string
	initiator          string
	kubeletPath        string
	registrationSocket string
	segment            string
	store              string
	kubeconfig         string
}

func newNodeCommand() *cobra.Command {
	var opt nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Serve CSI's node service: format, mount and measure volumes on this node",
		Long: `Node serves the kubelet: it has the initiator attach volumes, makes file systems, mounts them,
and reports what the node has (interfaces, front ends, devices) in its AoENode resource, or,
with --store DIR, in the file DIR/nodes/NAME.json. It never touches a frame; restarting it
disturbs no volume.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runNode(cmd.Context(), opt) },
	}
	flags := cmd.Flags()
	flags.StringVar(&opt.endpoint, "endpoint", "unix:///csi/csi.sock", "CSI endpoint to serve on")
	flags.StringVar(&opt.nodeID, "node-id", "", "name of this node, also its CSI node ID (required)")
	flags.StringVar(&opt.initiator, "initiator", "/run/aoe-csi/initiator.sock", "socket of the initiator")
	flags.StringVar(&opt.kubeletPath, "kubelet-registration-path", "/var/lib/kubelet/plugins/"+driver.Name+"/csi.sock",
		"path of the CSI endpoint as the kubelet sees it")
	flags.StringVar(&opt.registrationSocket, "registration-socket", "",
		"socket in the kubelet's plugins_registry to register through; empty: do not register")
	flags.StringVar(&opt.segment, "segment", "default", "Ethernet segment of this node, value of "+driver.TopologyKey)
	flags.StringVar(&opt.store, "store", storeKubernetes, `where the node reports: "kubernetes", or a directory`)
	flags.StringVar(&opt.kubeconfig, "kubeconfig", "", "access to the cluster; empty: the pod's service account")
	addVerbosity(cmd)
	if err := cmd.MarkFlagRequired("node-id"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// runNode serves until ctx ends or one of the parts fails; then all of them end.
func runNode(ctx context.Context, opt nodeOptions) error {
	conn, err := dialInitiator(opt.initiator)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // at the end of the process nobody is left to tell
	client := initiatorv1.NewInitiatorClient(conn)
	nodes, recorder, stop, err := openNodeStore(opt.store, opt.kubeconfig, opt.nodeID)
	if err != nil {
		return err
	}
	defer stop()
	server := driver.NewServer(driver.Config{
		Version: version,
		Node: driver.NewNode(driver.NodeConfig{
			ID: opt.nodeID, Segment: opt.segment, Mounter: mount.New(), Recorder: recorder,
			Attacher: &nodeAttacher{client: client},
		}),
		Probe: func(ctx context.Context) error {
			_, err := client.GetNode(ctx, &initiatorv1.GetNodeRequest{})
			return err
		},
	})
	parts := []func(context.Context) error{
		func(ctx context.Context) error { return server.ListenAndServe(ctx, opt.endpoint) },
		(&nodeReporter{client: client, nodes: nodes, name: opt.nodeID, segment: opt.segment}).run,
	}
	if opt.registrationSocket != "" {
		registrar := driver.NewRegistrar(opt.kubeletPath)
		parts = append(parts, func(ctx context.Context) error { return registrar.Serve(ctx, opt.registrationSocket) })
	}
	klog.InfoS("Node plugin starts", "version", version, "node", opt.nodeID, "segment", opt.segment, "endpoint", opt.endpoint)
	return runTogether(ctx, parts)
}

// runTogether runs all parts until ctx ends or one ends by itself, waits for all, and returns their errors.
func runTogether(ctx context.Context, parts []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() { ended <- part(ctx) }()
	}
	var all error
	for range parts {
		all = errors.Join(all, <-ended)
		cancel()
	}
	return all
}

// dialInitiator connects to the initiator's socket. The initiator may be started later or again: the connection comes back within
// a second.
func dialInitiator(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to the initiator at %s: %w", socket, err)
	}
	return conn, nil
}
