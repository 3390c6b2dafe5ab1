package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newStatCommand) }

func newStatCommand() *cobra.Command {
	var opt clientOptions
	cmd := &cobra.Command{
		Use:   "stat [VOLUME]",
		Short: "Show what is attached",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			return opt.call(ctx, func(ctx context.Context, client initiatorv1.InitiatorClient) error {
				list, err := attachments(ctx, client, args)
				if err != nil {
					return err
				}
				if opt.output == "json" {
					return printJSON(cmd.OutOrStdout(), list)
				}
				if err := printAttachments(cmd.OutOrStdout(), list, opt.output == "wide"); err != nil || len(args) > 0 {
					return err
				}
				return printLeftovers(ctx, cmd.OutOrStdout(), client)
			})
		},
	}
	opt.add(cmd, "table", "wide", "json")
	return cmd
}

// attachments are all, or the one that is named.
func attachments(ctx context.Context, client initiatorv1.InitiatorClient, args []string) (*initiatorv1.ListResponse, error) {
	if len(args) == 0 {
		return client.List(ctx, &initiatorv1.ListRequest{})
	}
	a, err := find(ctx, client, args[0])
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fmt.Errorf("%s is not attached", args[0])
	}
	return &initiatorv1.ListResponse{Attachments: []*initiatorv1.Attachment{a}}, nil
}

func printAttachments(out io.Writer, list *initiatorv1.ListResponse, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	columns := []string{"VOLUME", "TARGET", "DEVICE", "SIZE", "STATE", "PATHS", "SESSION", "FRONTEND"}
	if wide {
		columns = append(columns, "REASON", "SINCE", "READS", "WRITES", "OUT", "RETRANS", "POOL", "GROWN", "CAPPED", "WAITS", "MODEL", "MESSAGE")
	}
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	for _, a := range list.GetAttachments() {
		row := []string{a.GetVolumeId(), targetName(a.GetTarget()), orDash(a.GetDevice()), humanBytes(a.GetSizeBytes()),
			a.GetState(), describePaths(a.GetPaths(), wide), yesNo(a.GetSession()), orDash(a.GetFrontend())}
		if wide {
			s := a.GetStatistics()
			row = append(row, orDash(printable(a.GetFrontendReason())), time.Since(a.GetSince().AsTime()).Round(time.Second).String(),
				humanBytes(s.GetReadBytes()), humanBytes(s.GetWriteBytes()), fmt.Sprint(s.GetOutstanding()),
				fmt.Sprint(s.GetRetransmits()), fmt.Sprintf("%d/%d", s.GetPoolFrames(), s.GetPoolCeiling()),
				fmt.Sprint(s.GetPoolGrown()), fmt.Sprint(s.GetPoolCeilingHits()), fmt.Sprint(s.GetPoolWaits()),
				orDash(printable(a.GetModel())), orDash(printable(a.GetMessage())))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// printLeftovers tells of devices and records that belong to no attachment. An initiator that cannot be asked is no error: the
// attachments were what was wanted.
func printLeftovers(ctx context.Context, out io.Writer, client initiatorv1.InitiatorClient) error {
	examined, err := client.Examine(ctx, &initiatorv1.ExamineRequest{})
	if err != nil {
		return nil // see above
	}
	for _, f := range examined.GetFindings() {
		if _, err := fmt.Fprintf(out, "%s: %s; %s\n", printable(f.GetObject()), printable(f.GetWhat()), printable(f.GetTodo())); err != nil {
			return err
		}
	}
	return nil
}

// describePaths is "eth1 up,eth2 down", or with round trips and windows.
func describePaths(paths []*initiatorv1.Path, wide bool) string {
	var all []string
	for _, p := range paths {
		text := p.GetInterface() + " " + p.GetState()
		if wide {
			text += fmt.Sprintf(" %s %v×%d", p.GetRemoteMac(), p.GetRtt().AsDuration().Round(time.Microsecond), p.GetWindow())
		}
		all = append(all, text)
	}
	return orDash(strings.Join(all, ","))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
