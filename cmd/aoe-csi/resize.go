package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newResizeCommand) }

func newResizeCommand() *cobra.Command {
	var (
		opt  clientOptions
		size string
	)
	cmd := &cobra.Command{
		Use:   "resize VOLUME",
		Short: "Make a block device as large as its target has become",
		Long: `Resize asks the target how large it is and makes the device as large, never smaller; what is on it (a file system) is not touched. VOLUME
is the name of the attachment or its address. The target has to answer: the kernel cannot change the size while requests are stuck.`,
		Example: `  aoe-csi lun grow e7.3 --size 2Gi     on the shelf's host
  aoe-csi resize e7.3 --size 2Gi       here
  resize2fs /dev/nbd0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var wanted uint64
			if size != "" {
				var err error
				if wanted, err = parseSize(size); err != nil {
					return err
				}
			}
			return opt.call(cmd.Context(), func(ctx context.Context, client initiatorv1.InitiatorClient) error {
				a, err := find(ctx, client, args[0])
				if err != nil {
					return err
				}
				if a == nil {
					return fmt.Errorf("%s is not attached", args[0])
				}
				a, err = client.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: a.GetVolumeId(), WantedBytes: wanted})
				if err != nil {
					return err
				}
				if opt.output == "json" {
					return printJSON(cmd.OutOrStdout(), a)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s, %s\n", targetName(a.GetTarget()), a.GetDevice(), humanBytes(a.GetSizeBytes()))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "fail unless it gets at least so large: bytes, or with a unit: 512Mi, 1Gi")
	opt.add(cmd, "table", "json")
	return cmd
}
