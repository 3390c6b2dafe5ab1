package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newAttachCommand) }

func newAttachCommand() *cobra.Command {
	var (
		opt      clientOptions
		request  initiatorv1.AttachRequest
		deadTime time.Duration
		timeout  time.Duration
	)
	cmd := &cobra.Command{
		Use:   "attach TARGET",
		Short: "Make a target a block device",
		Example: `  aoe-csi attach e7.3
  aoe-csi attach e7.3 --generation abcdefghijklmnop --interface eth1
  aoe-csi attach e7.3-abcdefghijklmnop -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, generation, err := volumeArg(args[0])
			if err != nil {
				return err
			}
			if generation != "" && request.GetGeneration() != "" && generation != request.GetGeneration() {
				return fmt.Errorf("%s names another generation than --generation %s", args[0], request.GetGeneration())
			}
			if generation != "" {
				request.Generation = generation
			}
			if request.GetVolumeId() == "" {
				request.VolumeId = args[0]
			}
			request.Target, request.DeadTime, request.Timeout = target, durationpb.New(deadTime), durationpb.New(timeout)
			return runAttach(cmd, opt, &request)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&request.VolumeId, "volume-id", "", "name of the attachment; default: TARGET as given")
	flags.StringVar(&request.Generation, "generation", "", "identity that the target must prove; empty: whoever answers there")
	flags.StringSliceVar(&request.Interfaces, "interface", nil, "interfaces to use; default: all of the initiator's")
	flags.StringSliceVar(&request.Macs, "mac", nil, "MAC addresses of the target: asked first, so that nobody else is")
	flags.StringVar(&request.Frontend, "frontend", "auto", "front end: auto, nbd or ublk")
	flags.BoolVar(&request.ReadOnly, "read-only", false, "attach read-only")
	flags.DurationVar(&deadTime, "dead-time", 0, "fail I/O after so long without an answer; 0: wait for ever")
	flags.DurationVar(&timeout, "timeout", 10*time.Second, "how long to look for the target")
	opt.add(cmd, "table", "json")
	return cmd
}

func runAttach(cmd *cobra.Command, opt clientOptions, request *initiatorv1.AttachRequest) error {
	return opt.call(cmd.Context(), func(ctx context.Context, client initiatorv1.InitiatorClient) error {
		a, err := client.Attach(ctx, request)
		if err != nil {
			return err
		}
		if opt.output == "json" {
			return printJSON(cmd.OutOrStdout(), a)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s, %s\n", targetName(a.GetTarget()), a.GetDevice(), humanBytes(a.GetSizeBytes()))
		return err
	})
}
