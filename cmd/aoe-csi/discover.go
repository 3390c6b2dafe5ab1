package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newDiscoverCommand) }

func newDiscoverCommand() *cobra.Command {
	var (
		opt        clientOptions
		interfaces []string
		wait       time.Duration
	)
	cmd := &cobra.Command{
		Use:   "discover [TARGET]",
		Short: "Ask who is on the wire",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &initiatorv1.DiscoverRequest{Interfaces: interfaces, Wait: durationpb.New(wait)}
			if len(args) > 0 {
				target, _, err := volumeArg(args[0])
				if err != nil {
					return err
				}
				request.Target = target
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait+callTimeout)
			defer cancel()
			return opt.call(ctx, func(ctx context.Context, client initiatorv1.InitiatorClient) error {
				found, err := client.Discover(ctx, request)
				if err != nil {
					return err
				}
				if opt.output == "json" {
					return printJSON(cmd.OutOrStdout(), found)
				}
				return printDiscovered(cmd.OutOrStdout(), found)
			})
		},
	}
	cmd.Flags().StringSliceVar(&interfaces, "interface", nil, "interfaces to ask on; default: all of the initiator's")
	cmd.Flags().DurationVar(&wait, "wait", time.Second, "how long to wait for answers")
	opt.add(cmd, "table", "json")
	return cmd
}

func printDiscovered(out io.Writer, found *initiatorv1.DiscoverResponse) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tINTERFACE\tMAC\tSIZE\tBUFFERS\tSECTORS\tMODEL\tSERIAL\tCONFIG")
	for _, t := range found.GetTargets() {
		size := "-"
		if t.GetSizeBytes() > 0 {
			size = humanBytes(t.GetSizeBytes())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", targetName(t.GetTarget()), t.GetInterface(), t.GetMac(), size,
			t.GetBufferCount(), t.GetSectorCount(), orDash(t.GetModel()), orDash(t.GetSerial()), orDash(printable(string(t.GetConfig()))))
	}
	return w.Flush()
}

// printable keeps what others wrote from playing with the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '.'
		}
		return r
	}, s)
}
