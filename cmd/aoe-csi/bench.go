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

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

func init() { commands = append(commands, newBenchCommand) }

// benchOptions are the flags of `aoe-csi bench`.
type benchOptions struct {
	interfaces []string
	rw         string
	size       string
	load       bench.Load
	poolMax    int
	shards     int
	idle       time.Duration
	timeout    time.Duration
	output     string
}

func newBenchCommand() *cobra.Command {
	var opt benchOptions
	cmd := &cobra.Command{
		Use:   "bench TARGET… --interface IF,…",
		Short: "Measure a target over the wire, without a block device",
		Long: `Bench sends requests to a target from this process, without a block device or a running initiator, and says how many were
answered in a second. A managed LUN must admit this host. Writing DESTROYS what is on the target. Detach it first: a session of
this host's initiator on the same LUN goes on beside this one.

Several targets are loaded at once; e7.0-15 is sixteen of them.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opt.run(cmd.Context(), cmd.OutOrStdout(), args)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&opt.interfaces, "interface", nil, "Ethernet interfaces to use; none: every network card that is up")
	flags.StringVar(&opt.rw, "rw", "randread", "read, randread, or, destroying data, write, randwrite, rw, randrw (3 of 10 are writes)")
	flags.StringVar(&opt.size, "bs", "4Ki", "size of a request")
	flags.IntVar(&opt.load.Depth, "depth", 32, "requests outstanding, on each target")
	flags.DurationVar(&opt.load.Time, "time", 5*time.Second, "how long to measure")
	flags.DurationVar(&opt.load.Ramp, "ramp", time.Second, "how long to run before")
	flags.Uint64Var(&opt.load.Requests, "requests", 0, "go on after --time until so many were measured")
	flags.IntVar(&opt.shards, "shards", 1, "event loops, each a thread")
	flags.DurationVar(&opt.idle, "idle", 0, "no load: say what attached targets cost while nothing is done with them for so long")
	flags.IntVar(&opt.poolMax, "pool-max", initiator.DefaultPoolMax, "ceiling of transmit frames, of each target")
	flags.DurationVar(&opt.timeout, "timeout", 10*time.Second, "how long the target may take to answer at first")
	flags.StringVarP(&opt.output, "output", "o", "table", "output: table, json")
	addProfile(cmd)
	return cmd
}

func (o *benchOptions) run(ctx context.Context, out io.Writer, args []string) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if args, err = benchTargets(args); err != nil {
		return err
	}
	if o.interfaces, err = initiatorInterfaces(o.interfaces); err != nil {
		return err
	}
	var shards []*initiator.Shard
	defer func() { err = errors.Join(err, closeShards(shards)) }()
	for i := range o.shards {
		shard, err := initiator.NewShard(initiator.ShardConfig{Index: uint8(i), Interfaces: o.interfaces})
		if err != nil {
			return err
		}
		shards = append(shards, shard)
	}
	empty, err := residentMiB()
	if err != nil {
		return err
	}
	devices, took, err := o.attachAll(ctx, shards, args)
	defer func() { err = errors.Join(err, detachAll(ctx, devices)) }()
	if err != nil {
		return err
	}
	if o.idle == 0 {
		return o.measure(ctx, out, devices)
	}
	scale, err := o.scale(ctx, empty, took)
	if err != nil {
		return err
	}
	return o.print(out, bench.Measurement{Scale: scale})
}

// check turns flags into a load.
func (o *benchOptions) check() error {
	size, err := parseSize(o.size)
	if err != nil {
		return err
	}
	o.load.Bytes = int(size)
	kind, random := strings.CutPrefix(o.rw, "rand")
	writes, known := map[string]int{"read": 0, "write": 100, "rw": 30}[kind]
	o.load.Random, o.load.Writes = random, writes
	if !known || o.output != "table" && o.output != "json" {
		return errors.New("--rw is read, randread, write, randwrite, rw or randrw, --output table or json")
	}
	if o.shards < 1 || o.shards > initiator.MaxShards {
		return fmt.Errorf("--shards %d: must be 1 to %d", o.shards, initiator.MaxShards)
	}
	return nil
}

// measure runs the load and prints what came of it.
func (o *benchOptions) measure(ctx context.Context, out io.Writer, devices []*initiator.Device) error {
	cpu, begin := bench.OwnCPU(), time.Now()
	d, err := bench.Drive(ctx, o.load, devices...)
	if err != nil {
		return err
	}
	cpu = time.Duration(float64(bench.OwnCPU()-cpu) / float64(time.Since(begin)) * float64(d.Took))
	bytes := float64(d.Requests) * float64(o.load.Bytes)
	return o.print(out, bench.Measurement{
		IOPS: float64(d.Requests) / d.Took.Seconds(), MBps: bytes / 1e6 / d.Took.Seconds(),
		Mean: bench.Microseconds(d.Latency.Mean()), P50: bench.Microseconds(d.Latency.Quantile(0.5)),
		P99: bench.Microseconds(d.Latency.Quantile(0.99)), CPU: cpu.Seconds() / max(bytes, 1) * 1e9,
		PoolFrames: d.PoolFrames, PoolCeiling: d.PoolCeiling, PoolGrown: d.PoolGrown, PoolCapped: d.PoolCapped, PoolWaits: d.PoolWaits,
		Retransmits: d.Retransmits, Requests: d.Requests, Longest: bench.Microseconds(d.Longest), Timeout: bench.Microseconds(d.Timeout),
		InitiatorAllocations: float64(d.Allocations) / float64(max(d.Requests, 1)),
	})
}

// print says what was measured.
func (o *benchOptions) print(out io.Writer, m bench.Measurement) error {
	if o.output == "json" {
		return json.NewEncoder(out).Encode(m)
	}
	if s := m.Scale; s != nil {
		_, err := fmt.Fprintf(out, "%d volumes, attached in %.1f ms (p50; p99 %.1f), %.1f MiB of memory (%.1f without any), %.2f %% of a processor while idle\n",
			s.Volumes, s.AttachP50, s.AttachP99, s.Initiator, s.InitiatorEmpty, 100*s.IdleInitiator)
		return err
	}
	_, err := fmt.Fprintf(out, "%.0f requests/s, %.1f MB/s, latency %.0f µs (p50 %.0f, p99 %.0f), %.2f CPU s/GB here, %d retransmissions, pool %d/%d, grown %d, at its ceiling %d times, %.6f allocations/request\n",
		m.IOPS, m.MBps, m.Mean, m.P50, m.P99, m.CPU, m.Retransmits, m.PoolFrames, m.PoolCeiling, m.PoolGrown, m.PoolCapped, m.InitiatorAllocations)
	return err
}
