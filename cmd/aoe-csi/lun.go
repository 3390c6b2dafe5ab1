package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func init() { commands = append(commands, newLunCommand) }

// lunOptions are the flags of all `aoe-csi lun` commands.
type lunOptions struct {
	socket     string
	runDir     string
	timeout    time.Duration
	output     string
	generation string
}

// lunCall is what a subcommand does with a LUN's address and a connection to its shelf.
type lunCall func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, out io.Writer) error

func newLunCommand() *cobra.Command {
	opt := &lunOptions{}
	cmd := &cobra.Command{
		Use:   "lun",
		Short: "Make, list and remove the LUNs of a shelf on this host",
		Long: `Lun asks the target on this host, as root, over its unix socket. Volumes of a cluster are the controller's: look, but
do not change them here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&opt.socket, "socket", "", "the shelf API's unix socket (default RUN-DIR/shelf-N-api.sock)")
	flags.StringVar(&opt.runDir, "run-dir", "/run/aoe-csi", "where the target's sockets are")
	flags.DurationVar(&opt.timeout, "timeout", 30*time.Second, "give up after")
	cmd.AddCommand(newLunCreate(opt), newLunDelete(opt), newLunList(opt), newLunAdmit(opt), newLunExpel(opt), newLunGrow(opt))
	return cmd
}

// lunSubcommand is what the commands about one LUN have in common.
func lunSubcommand(opt *lunOptions, use, short string, call lunCall) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := aoe.ParseAddr(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), opt.timeout)
			defer cancel()
			conn, err := opt.dial(&addr)
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing was written
			return plain(call(ctx, shelfv1.NewShelfClient(conn), addr, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&opt.generation, "generation", "", "identity of the LUN, 16 characters of base32; empty: whatever is at the slot")
	return cmd
}

// dial connects to the shelf of addr, or to the only one on this host.
func (o *lunOptions) dial(addr *aoe.Addr) (*grpc.ClientConn, error) {
	path := o.socket
	if path == "" && addr != nil {
		path = filepath.Join(o.runDir, fmt.Sprintf("shelf-%d-api.sock", addr.Shelf))
	}
	if path == "" {
		found, err := filepath.Glob(filepath.Join(o.runDir, "shelf-*-api.sock"))
		if err != nil {
			return nil, fmt.Errorf("look for shelves in %s: %w", o.runDir, err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("no shelf on this host: no socket in %s; start `aoe-csi target`", o.runDir)
		}
		if len(found) > 1 {
			return nil, fmt.Errorf("several shelves on this host, choose one with --socket: %s", strings.Join(found, ", "))
		}
		path = found[0]
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("shelf API %s: %w", path, err)
	}
	conn, err := grpc.NewClient("unix://"+abs, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("shelf API %s: %w", path, err)
	}
	return conn, nil
}

// plain turns a gRPC status into words for a terminal.
func plain(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	if st.Code() == codes.Unavailable {
		return fmt.Errorf("the target does not answer; is `aoe-csi target` running? (%s)", st.Message())
	}
	return errors.New(st.Message())
}

// id is the LUN meant: with the generation that was given, or the one at the slot.
func (o *lunOptions) id(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr) (*shelfv1.LunId, error) {
	if o.generation != "" {
		return &shelfv1.LunId{Slot: uint32(addr.Slot), Generation: o.generation}, nil
	}
	luns, err := listLuns(ctx, shelf)
	if err != nil {
		return nil, err
	}
	for _, l := range luns {
		if l.GetId().GetSlot() == uint32(addr.Slot) {
			return l.GetId(), nil
		}
	}
	return nil, fmt.Errorf("%s: no such LUN", addr)
}

func listLuns(ctx context.Context, shelf shelfv1.ShelfClient) ([]*shelfv1.Lun, error) {
	var luns []*shelfv1.Lun
	for token := ""; ; {
		page, err := shelf.ListLuns(ctx, &shelfv1.ListLunsRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		luns = append(luns, page.GetLuns()...)
		if token = page.GetNextPageToken(); token == "" {
			return luns, nil
		}
	}
}

func newLunCreate(opt *lunOptions) *cobra.Command {
	var size, access, name string
	cmd := lunSubcommand(opt, "create ADDRESS --size SIZE", "Make a LUN of zeroes at an address such as e7.3",
		func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, out io.Writer) error {
			bytes, err := parseSize(size)
			if err != nil {
				return err
			}
			mode, ok := map[string]shelfv1.Access{"managed": shelfv1.Access_ACCESS_MANAGED, "open": shelfv1.Access_ACCESS_OPEN}[access]
			if !ok {
				return fmt.Errorf("access %q: want managed or open", access)
			}
			generation := opt.generation
			if generation == "" {
				generation = string(volume.NewGeneration())
			}
			l, err := shelf.CreateLun(ctx, &shelfv1.CreateLunRequest{
				Id: &shelfv1.LunId{Slot: uint32(addr.Slot), Generation: generation}, Name: name, SizeBytes: bytes, Access: mode,
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "%s-%s %s\n", addr, l.GetId().GetGeneration(), formatSize(l.GetSizeBytes()))
			return err
		})
	cmd.Flags().StringVar(&size, "size", "", "bytes, or with a unit: 512Mi, 1Gi")
	cmd.Flags().StringVar(&access, "access", "managed", "managed: for admitted nodes; open: for everybody on the segment")
	cmd.Flags().StringVar(&name, "name", "", "for people")
	cmd.Flags().Lookup("generation").Usage = "identity of the new LUN, 16 characters of base32; empty: a new random one"
	_ = cmd.MarkFlagRequired("size") // the flag exists
	return cmd
}

func newLunDelete(opt *lunOptions) *cobra.Command {
	return lunSubcommand(opt, "delete ADDRESS", "Remove a LUN and all its data",
		func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, _ io.Writer) error {
			id, err := opt.id(ctx, shelf, addr)
			if err != nil {
				return err
			}
			_, err = shelf.DeleteLun(ctx, &shelfv1.DeleteLunRequest{Id: id})
			return err
		})
}

func newLunAdmit(opt *lunOptions) *cobra.Command {
	var node string
	var macs []string
	cmd := lunSubcommand(opt, "admit ADDRESS --node NODE --mac MAC,…", "Let a node use a managed LUN",
		func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, _ io.Writer) error {
			id, err := opt.id(ctx, shelf, addr)
			if err != nil {
				return err
			}
			_, err = shelf.Admit(ctx, &shelfv1.AdmitRequest{Id: id, Admission: &shelfv1.Admission{Node: node, Macs: macs}})
			return err
		})
	cmd.Flags().StringVar(&node, "node", "", "the node's name")
	cmd.Flags().StringSliceVar(&macs, "mac", nil, "the addresses of its interfaces on the segment")
	_ = cmd.MarkFlagRequired("node")
	_ = cmd.MarkFlagRequired("mac")
	return cmd
}

func newLunExpel(opt *lunOptions) *cobra.Command {
	var node string
	cmd := lunSubcommand(opt, "expel ADDRESS --node NODE", "Take a node off a LUN: nothing it sends takes effect any more",
		func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, _ io.Writer) error {
			id, err := opt.id(ctx, shelf, addr)
			if err != nil {
				return err
			}
			_, err = shelf.Expel(ctx, &shelfv1.ExpelRequest{Id: id, Node: node})
			return err
		})
	cmd.Flags().StringVar(&node, "node", "", "the node's name")
	_ = cmd.MarkFlagRequired("node")
	return cmd
}

func newLunGrow(opt *lunOptions) *cobra.Command {
	var size string
	cmd := lunSubcommand(opt, "grow ADDRESS --size SIZE", "Make a LUN at least as large as SIZE",
		func(ctx context.Context, shelf shelfv1.ShelfClient, addr aoe.Addr, out io.Writer) error {
			bytes, err := parseSize(size)
			if err != nil {
				return err
			}
			id, err := opt.id(ctx, shelf, addr)
			if err != nil {
				return err
			}
			l, err := shelf.GrowLun(ctx, &shelfv1.GrowLunRequest{Id: id, SizeBytes: bytes})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "%s-%s %s\n", addr, l.GetId().GetGeneration(), formatSize(l.GetSizeBytes()))
			return err
		})
	cmd.Flags().StringVar(&size, "size", "", "bytes, or with a unit: 512Mi, 1Gi")
	_ = cmd.MarkFlagRequired("size")
	return cmd
}

func newLunList(opt *lunOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the LUNs of a shelf",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), opt.timeout)
			defer cancel()
			conn, err := opt.dial(nil)
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing was written
			luns, err := listLuns(ctx, shelfv1.NewShelfClient(conn))
			if err != nil {
				return plain(err)
			}
			return printLuns(cmd.OutOrStdout(), opt.output, luns)
		},
	}
	cmd.Flags().StringVarP(&opt.output, "output", "o", "table", "table or json")
	return cmd
}

// printLuns writes a table for people, or JSON of the API's ListLunsResponse.
func printLuns(out io.Writer, format string, luns []*shelfv1.Lun) error {
	switch format {
	case "json":
		text, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true}.Marshal(&shelfv1.ListLunsResponse{Luns: luns})
		if err != nil {
			return fmt.Errorf("encode LUNs: %w", err)
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	case "table":
	default:
		return fmt.Errorf("output %q: want table or json", format)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tGENERATION\tSIZE\tUSED\tACCESS\tADMITTED\tNAME")
	for _, l := range luns {
		access := strings.ToLower(strings.TrimPrefix(l.GetAccess().String(), "ACCESS_"))
		var nodes []string
		for _, a := range l.GetAdmitted() {
			nodes = append(nodes, a.GetNode())
		}
		addr := aoe.Addr{Shelf: uint16(l.GetShelf()), Slot: uint8(l.GetId().GetSlot())}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", addr, l.GetId().GetGeneration(), formatSize(l.GetSizeBytes()),
			formatSize(l.GetAllocatedBytes()), access, orDash(strings.Join(nodes, ",")), orDash(l.GetName()))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// parseSize reads what Kubernetes calls a quantity.
func parseSize(s string) (uint64, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("size %q: want bytes, or a number with a unit such as 512Mi or 1Gi", s)
	}
	if q.Sign() <= 0 {
		return 0, fmt.Errorf("size %q: must be greater than 0", s)
	}
	if q.CmpInt64(math.MaxInt64) >= 0 { // larger ones are cut to this
		return 0, fmt.Errorf("size %q: more bytes than any disk has", s)
	}
	return uint64(q.Value()), nil
}

func formatSize(n uint64) string {
	return resource.NewQuantity(int64(n), resource.BinarySI).String()
}
