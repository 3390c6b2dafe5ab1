package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
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
	timeout    time.Duration
	output     string
	profile    string
}

func newBenchCommand() *cobra.Command {
	var opt benchOptions
	cmd := &cobra.Command{
		Use:   "bench TARGET --interface IF,…",
		Short: "Measure a target over the wire, without a block device",
		Long: `Bench sends requests to a target from this process, without a block device or a running initiator, and says how many were
answered in a second. A managed LUN must admit this host. Writing DESTROYS what is on the target. Detach it first: a session of
this host's initiator on the same LUN goes on beside this one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opt.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&opt.interfaces, "interface", nil, "Ethernet interfaces to use; none: every network card that is up")
	flags.StringVar(&opt.rw, "rw", "randread", "read, randread, or, destroying data, write, randwrite")
	flags.StringVar(&opt.size, "bs", "4Ki", "size of a request")
	flags.IntVar(&opt.load.Depth, "depth", 32, "requests outstanding")
	flags.DurationVar(&opt.load.Time, "time", 5*time.Second, "how long to measure")
	flags.DurationVar(&opt.load.Ramp, "ramp", time.Second, "how long to run before")
	flags.IntVar(&opt.poolMax, "pool-max", initiator.DefaultPoolMax, "ceiling of transmit frames")
	flags.DurationVar(&opt.timeout, "timeout", 10*time.Second, "how long the target may take to answer at first")
	flags.StringVarP(&opt.output, "output", "o", "table", "output: table, json")
	flags.StringVar(&opt.profile, "cpu-profile", "", "file for a profile of this process, for go tool pprof")
	return cmd
}

func (o *benchOptions) run(ctx context.Context, out io.Writer, arg string) (err error) {
	size, err := parseSize(o.size)
	if err != nil {
		return err
	}
	o.load.Bytes = int(size)
	kind, random := strings.CutPrefix(o.rw, "rand")
	o.load.Random, o.load.Write = random, kind == "write"
	if kind != "read" && kind != "write" || o.output != "table" && o.output != "json" {
		return errors.New("--rw is read, randread, write or randwrite, --output table or json")
	}
	target, generation, err := volumeArg(arg)
	if err != nil {
		return err
	}
	if o.interfaces, err = initiatorInterfaces(o.interfaces); err != nil {
		return err
	}
	shard, err := initiator.NewShard(initiator.ShardConfig{Interfaces: o.interfaces})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shard.Close()) }()
	config := initiator.DeviceConfig{
		Addr:       aoe.Addr{Shelf: uint16(target.GetShelf()), Slot: uint8(target.GetSlot())},
		Generation: generation, Incarnation: uint64(time.Now().UnixNano()), PoolMax: o.poolMax,
	}
	rand.Read(config.UUID[:]) // never fails
	attaching, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	dev, err := shard.Attach(attaching, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Detach(context.WithoutCancel(ctx), false)) }()
	return o.measure(ctx, out, dev)
}

// measure runs the load and prints what came of it.
func (o *benchOptions) measure(ctx context.Context, out io.Writer, dev *initiator.Device) error {
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	cpu, begin := bench.OwnCPU(), time.Now()
	d, err := bench.Drive(ctx, dev, o.load)
	if err != nil {
		return err
	}
	cpu = time.Duration(float64(bench.OwnCPU()-cpu) / float64(time.Since(begin)) * float64(d.Took))
	bytes := float64(d.Requests) * float64(o.load.Bytes)
	m := bench.Measurement{
		IOPS: float64(d.Requests) / d.Took.Seconds(), MBps: bytes / 1e6 / d.Took.Seconds(),
		Mean: bench.Microseconds(d.Latency.Mean()), P50: bench.Microseconds(d.Latency.Quantile(0.5)),
		P99: bench.Microseconds(d.Latency.Quantile(0.99)), CPU: cpu.Seconds() / max(bytes, 1) * 1e9,
		PoolWaits: d.PoolWaits, PoolGrown: d.PoolGrown, Retransmits: d.Retransmits,
	}
	if o.output == "json" {
		return json.NewEncoder(out).Encode(m)
	}
	_, err = fmt.Fprintf(out, "%.0f requests/s, %.1f MB/s, latency %.0f µs (p50 %.0f, p99 %.0f), %.2f CPU s/GB here, %d retransmissions\n",
		m.IOPS, m.MBps, m.Mean, m.P50, m.P99, m.CPU, m.Retransmits)
	return err
}
