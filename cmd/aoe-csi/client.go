package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/attach"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// clientOptions are the flags that all clients of the initiator have.
type clientOptions struct {
	socket string
	output string
}

// add gives a command the flags; formats are those that -o takes.
func (o *clientOptions) add(cmd *cobra.Command, formats ...string) {
	cmd.Flags().StringVar(&o.socket, "socket", defaultSocket, "the initiator's unix socket")
	if len(formats) > 0 {
		cmd.Flags().StringVarP(&o.output, "output", "o", formats[0], "output: "+strings.Join(formats, ", "))
		check := cmd.PreRunE
		cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
			for _, f := range formats {
				if o.output == f {
					if check != nil {
						return check(cmd, args)
					}
					return nil
				}
			}
			return fmt.Errorf("--output %s: must be one of %s", o.output, strings.Join(formats, ", "))
		}
	}
}

// call connects to the initiator, calls f and explains its error.
func (o *clientOptions) call(ctx context.Context, f func(context.Context, initiatorv1.InitiatorClient) error) (err error) {
	client, err := attach.Dial(o.socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	return o.explain(f(ctx, client))
}

// explain makes a sentence of a gRPC error.
func (o *clientOptions) explain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	if s.Code() == codes.Unavailable && strings.Contains(s.Message(), "connection error") {
		return fmt.Errorf("initiator does not answer at %s: is `aoe-csi initiator` running? (%s)", o.socket, s.Message())
	}
	if s.Code() == codes.DeadlineExceeded {
		return fmt.Errorf("initiator did not finish in time: %s", s.Message())
	}
	return errors.New(s.Message())
}

// volumeArg reads what people name volumes by: an address ("e7.3"), or a CSI volume handle, which has the generation in it.
func volumeArg(arg string) (target *initiatorv1.Target, generation string, err error) {
	addr, err := aoe.ParseAddr(arg)
	if err != nil {
		id, idErr := volume.ParseID(arg)
		if idErr != nil {
			return nil, "", fmt.Errorf("%q is neither an address like e7.3 nor a volume handle like e7.3-abcdefghijklmnop", arg)
		}
		addr, generation = id.Addr, string(id.Generation)
	}
	return &initiatorv1.Target{Shelf: uint32(addr.Shelf), Slot: uint32(addr.Slot)}, generation, nil
}

// find returns the attachment with this volume ID, or else the one at this address; nil if there is none.
func find(ctx context.Context, client initiatorv1.InitiatorClient, arg string) (*initiatorv1.Attachment, error) {
	list, err := client.List(ctx, &initiatorv1.ListRequest{})
	if err != nil {
		return nil, err
	}
	for _, a := range list.GetAttachments() {
		if a.GetVolumeId() == arg {
			return a, nil
		}
	}
	for _, a := range list.GetAttachments() {
		if targetName(a.GetTarget()) == arg {
			return a, nil
		}
	}
	return nil, nil
}

func targetName(t *initiatorv1.Target) string {
	return fmt.Sprintf("e%d.%d", t.GetShelf(), t.GetSlot())
}

// printJSON prints a message with every field, indented the same way each time.
func printJSON(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

// humanBytes is a size as people write it, exact or with one decimal.
func humanBytes(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/unit, "KMGTPE"
	i := 0
	for ; value >= unit && i < len(units)-1; i++ {
		value /= unit
	}
	return strings.Replace(fmt.Sprintf("%.1f %ciB", value, units[i]), ".0 ", " ", 1)
}

// callTimeout bounds calls that only ask.
const callTimeout = 30 * time.Second
