package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

func init() { commands = append(commands, newProbeCommand) }

// probeOptions says which process is asked: exactly one of endpoint and initiator is set.
type probeOptions struct {
	endpoint  string
	initiator string
	ready     bool
	timeout   time.Duration
}

func newProbeCommand() *cobra.Command {
	var opt probeOptions
	cmd := &cobra.Command{
		Use:   "probe (--endpoint ADDRESS | --initiator SOCKET)",
		Short: "Ask a running process of ours whether it answers (for a container's probes)",
		Long: `Probe exits 0 when the process behind the socket answers, and 1 with a reason when it does not.

With --endpoint it calls CSI's Probe. An answer is enough unless --ready is given; then the
driver must also call itself ready. With --initiator it asks the initiator for its interfaces.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), opt.timeout)
			defer cancel()
			if opt.initiator != "" {
				return probeInitiator(ctx, opt.initiator)
			}
			return probeDriver(ctx, opt.endpoint, opt.ready)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opt.endpoint, "endpoint", "", "CSI endpoint, unix:///PATH")
	flags.StringVar(&opt.initiator, "initiator", "", "socket of the initiator, a path")
	flags.BoolVar(&opt.ready, "ready", false, "with --endpoint: fail unless the driver says that it is ready")
	flags.DurationVar(&opt.timeout, "timeout", 10*time.Second, "give up after")
	cmd.MarkFlagsOneRequired("endpoint", "initiator")
	cmd.MarkFlagsMutuallyExclusive("endpoint", "initiator")
	return cmd
}

// probeDriver asks the CSI driver at endpoint. An error that the driver itself sent counts as an
// answer unless ready is asked for: a restart would not cure it.
func probeDriver(ctx context.Context, endpoint string, ready bool) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("probe %s: %w", endpoint, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	answer, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	switch {
	case err != nil && (ready || !answered(err)):
		return fmt.Errorf("probe %s: %w", endpoint, err)
	case ready && answer.GetReady() != nil && !answer.GetReady().GetValue():
		return fmt.Errorf("probe %s: %w", endpoint, errNotReady)
	}
	return nil
}

var errNotReady = errors.New("the driver says that it is not ready")

// answered tells a status that the driver chose from one that the connection made up.
func answered(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	}
	return true
}

func probeInitiator(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("probe initiator %s: %w", socket, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	if _, err := initiatorv1.NewInitiatorClient(conn).GetNode(ctx, &initiatorv1.GetNodeRequest{}); err != nil {
		return fmt.Errorf("probe initiator %s: %w", socket, err)
	}
	return nil
}
