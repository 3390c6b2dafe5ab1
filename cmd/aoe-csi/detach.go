package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newDetachCommand) }

func newDetachCommand() *cobra.Command {
	var (
		opt     clientOptions
		force   bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Flush and remove a block device",
		Long: `Detach flushes the device and removes it. VOLUME is the name of the attachment or its address. While the target does
not answer and I/O is pending it waits up to --timeout, and then gives the I/O up; with --force it gives it up at once.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opt.call(cmd.Context(), func(ctx context.Context, client initiatorv1.InitiatorClient) error {
				a, err := find(ctx, client, args[0])
				if err != nil {
					return err
				}
				if a == nil {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is not attached\n", args[0])
					return err
				}
				response, err := client.Detach(ctx, &initiatorv1.DetachRequest{
					VolumeId: a.GetVolumeId(), Force: force, Timeout: durationpb.New(timeout),
				})
				if err != nil {
					return err
				}
				if what := response.GetGivenUp(); what != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", args[0], what)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is detached\n", args[0])
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "give up outstanding I/O at once, also if the device is mounted")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for a target that does not answer")
	opt.add(cmd)
	return cmd
}
