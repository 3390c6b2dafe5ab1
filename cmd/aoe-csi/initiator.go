package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/internal/heap"
	"github.com/aoe-csi/aoe-csi/internal/shutdown"
	"github.com/aoe-csi/aoe-csi/pkg/attach"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev/nbd"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev/ublk"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// defaultSocket is where the initiator listens unless it is told otherwise.
const defaultSocket = "/run/aoe-csi/initiator.sock"

func init() { commands = append(commands, newInitiatorCommand) }

// endTimeout is how long an initiator may take to end when the machine goes down: less than supervise and the kubelet grant it.
const endTimeout = 16 * time.Second

// initiatorOptions are the flags of `aoe-csi initiator`.
type initiatorOptions struct {
	interfaces []string
	socket     string
	runDir     string
	stateDir   string
	frontend   string
	shards     int
	poolMax    int
	maxVolumes int
	hostRoot   string
}

func newInitiatorCommand() *cobra.Command {
	var opt initiatorOptions
	cmd := &cobra.Command{
		Use:   "initiator [--interface IF,…]",
		Short: "Make targets block devices of this host",
		Long: `Initiator is the data plane: it attaches targets as block devices when the CSI node plugin or the command line
("aoe-csi attach") asks for it over its unix socket. When it ends, its devices stay: their I/O waits for the next initiator
with the same run directory, which takes them over.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInitiator(cmd.Context(), opt) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&opt.interfaces, "interface", nil, "Ethernet interfaces to use; none: every network card that is up")
	flags.StringVar(&opt.socket, "socket", defaultSocket, "unix socket to listen on")
	flags.StringVar(&opt.runDir, "run-dir", "/run/aoe-csi", "where attachments are recorded and the sockets of targets on this host are found; on a tmpfs")
	flags.StringVar(&opt.stateDir, "state-dir", "/var/lib/aoe-csi/initiator", "where the initiator's identity is kept for ever")
	flags.StringVar(&opt.frontend, "frontend", attach.FrontendAuto, "block device front end to offer: auto (all that work here), ublk or nbd")
	flags.IntVar(&opt.shards, "shards", 1, fmt.Sprintf("event loops, each a thread; up to %d", initiator.MaxShards))
	flags.IntVar(&opt.poolMax, "pool-max", initiator.DefaultPoolMax, "ceiling of transmit frames per volume")
	flags.IntVar(&opt.maxVolumes, "max-volumes", 256, "most volumes that can be attached at a time")
	flags.StringVar(&opt.hostRoot, "host-root", "/proc/1/root", "root directory of the host, where systemd is asked whether the machine goes down: then devices are not left to the next initiator")
	addVerbosity(cmd)
	addProfile(cmd)
	return cmd
}

func (o *initiatorOptions) frontends() ([]blockdev.Frontend, error) {
	all := []blockdev.Frontend{ublk.New(), nbd.New()} // preferred first
	if o.frontend == attach.FrontendAuto {
		return all, nil
	}
	for _, f := range all {
		if f.Name() == o.frontend {
			return []blockdev.Frontend{f}, nil
		}
	}
	return nil, fmt.Errorf("--frontend %s: there are auto, ublk and nbd", o.frontend)
}

func (o *initiatorOptions) check() error {
	switch {
	case o.shards < 1 || o.shards > initiator.MaxShards:
		return fmt.Errorf("--shards %d: must be 1 to %d", o.shards, initiator.MaxShards)
	case o.poolMax < 1:
		return fmt.Errorf("--pool-max %d: must be at least 1", o.poolMax)
	case o.maxVolumes < 1:
		return fmt.Errorf("--max-volumes %d: must be at least 1", o.maxVolumes)
	}
	return nil
}

// runInitiator serves until ctx ends.
func runInitiator(ctx context.Context, opt initiatorOptions) (err error) {
	if err := opt.check(); err != nil {
		return err
	}
	frontends, err := opt.frontends()
	if err != nil {
		return err
	}
	if opt.interfaces, err = initiatorInterfaces(opt.interfaces); err != nil {
		return err
	}
	becomeFlusher() // may start the process anew
	lock, err := attach.LockDirs(opt.runDir, opt.stateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	prepareMemory(opt.shards)

	shards, err := newShards(opt)
	if err != nil {
		return err
	}
	manager, err := attach.NewManager(attach.Config{
		RunDir: opt.runDir, StateDir: opt.stateDir, Shards: shards, Interfaces: opt.interfaces,
		Frontends: frontends, PoolMax: opt.poolMax, MaxVolumes: opt.maxVolumes,
	})
	if err != nil {
		return errors.Join(err, closeShards(shards))
	}
	defer func() { err = errors.Join(err, manager.Close()) }()
	for _, f := range manager.Frontends(ctx) {
		klog.InfoS("Front end", "name", f.Name, "available", f.Available, "reason", f.Reason)
	}
	listener, err := attach.Listen(opt.socket)
	if err != nil {
		return err
	}
	klog.InfoS("Initiator is ready", "socket", opt.socket, "interfaces", opt.interfaces, "shards", opt.shards, "version", version)
	server := attach.NewServer(manager, inband.Discover, version)
	server.Allocations = heap.Allocations
	err = server.Serve(ctx, listener)
	return errors.Join(err, endInitiator(manager, opt.hostRoot))
}

// endInitiator decides what becomes of the devices: the next initiator takes them over, unless the machine goes down and there will be none.
func endInitiator(manager *attach.Manager, hostRoot string) error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	down, err := shutdown.Pending(ctx, hostRoot)
	if err != nil {
		klog.InfoS("Cannot tell whether the machine goes down, assuming that it does not", "err", err)
	}
	if down {
		return manager.End(ctx)
	}
	klog.InfoS("Initiator ends; its devices stay and wait for the next one", "attachments", len(manager.List()))
	return manager.Close()
}

func newShards(opt initiatorOptions) ([]*initiator.Shard, error) {
	runDir, err := filepath.Abs(opt.runDir)
	if err != nil {
		return nil, err
	}
	var shards []*initiator.Shard
	for i := range opt.shards {
		shard, err := initiator.NewShard(initiator.ShardConfig{
			Index: uint8(i), Interfaces: opt.interfaces, RunDir: runDir,
		})
		if err != nil {
			return nil, errors.Join(err, closeShards(shards))
		}
		shards = append(shards, shard)
	}
	return shards, nil
}

func closeShards(shards []*initiator.Shard) error {
	var errs []error
	for _, s := range shards {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
