package main

import (
	"context"
	"errors"
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
		Long: `Discover asks every target on the initiator's interfaces, or the one named, who it is. With -o wide or json it also asks
what a target can do: reservations and mask lists, and who is on them. An address at which two targets answer is marked: it
cannot be used.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &initiatorv1.DiscoverRequest{Interfaces: interfaces, Wait: durationpb.New(wait), Abilities: opt.output != "table"}
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
				if opt.output == "wide" {
					return printDiscoveredWide(cmd.OutOrStdout(), found)
				}
				return printDiscovered(cmd.OutOrStdout(), found)
			})
		},
	}
	cmd.Flags().StringSliceVar(&interfaces, "interface", nil, "interfaces to ask on; default: all of the initiator's")
	cmd.Flags().DurationVar(&wait, "wait", time.Second, "how long to wait for answers; 5s for a thousand targets")
	opt.add(cmd, "table", "wide", "json")
	return cmd
}

func printDiscovered(out io.Writer, found *initiatorv1.DiscoverResponse) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tINTERFACE\tMAC\tSIZE\tBUFFERS\tSECTORS\tMODEL\tSERIAL\tCONFIG")
	for _, t := range found.GetTargets() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", targetName(t.GetTarget()), t.GetInterface(), t.GetMac(), discoveredSize(t),
			t.GetBufferCount(), t.GetSectorCount(), orDash(t.GetModel()), orDash(t.GetSerial()), orDash(printable(string(t.GetConfig()))))
	}
	return errors.Join(w.Flush(), printConflicts(out, found))
}

// printDiscoveredWide shows what targets can do, too.
func printDiscoveredWide(out io.Writer, found *initiatorv1.DiscoverResponse) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tINTERFACE\tMAC\tSIZE\tBUFFERS\tSECTORS\tFIRMWARE\tMODEL\tREVISION\tSERIAL\tABILITIES\tRESERVED\tMASKED\tCONFIG")
	for _, t := range found.GetTargets() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", targetName(t.GetTarget()), t.GetInterface(), t.GetMac(),
			discoveredSize(t), t.GetBufferCount(), t.GetSectorCount(), t.GetFirmware(), orDash(t.GetModel()), orDash(t.GetRevision()),
			orDash(t.GetSerial()), orDash(abilities(t)), orDash(strings.Join(t.GetReserved(), ",")), orDash(strings.Join(t.GetMasked(), ",")),
			orDash(printable(string(t.GetConfig()))))
	}
	return errors.Join(w.Flush(), printConflicts(out, found))
}

// printConflicts says once per address why it cannot be used.
func printConflicts(out io.Writer, found *initiatorv1.DiscoverResponse) error {
	last := ""
	for _, t := range found.GetTargets() {
		if name := targetName(t.GetTarget()); t.GetConflict() != "" && name != last {
			last = name
			if _, err := fmt.Fprintf(out, "%s cannot be used: %s\n", name, t.GetConflict()); err != nil {
				return err
			}
		}
	}
	return nil
}

func discoveredSize(t *initiatorv1.Discovered) string {
	if t.GetSizeBytes() == 0 {
		return "-"
	}
	return humanBytes(t.GetSizeBytes())
}

// abilities lists what a target can do.
func abilities(t *initiatorv1.Discovered) string {
	var can []string
	for _, ability := range []struct {
		name string
		has  bool
	}{
		{"lba48", t.GetLba48()},
		{"flush", t.GetFlush()},
		{"trim", t.GetTrim() && !t.GetTrimZeroes()},
		{"trim-zeroes", t.GetTrimZeroes()},
		{"reserve", t.GetReserve() == initiatorv1.Support_SUPPORT_YES},
		{"mask", t.GetMask() == initiatorv1.Support_SUPPORT_YES},
	} {
		if ability.has {
			can = append(can, ability.name)
		}
	}
	return strings.Join(can, ",")
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
