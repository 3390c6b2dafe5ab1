// Command aoe-csi is the whole driver in one binary: a subcommand per process, and the command line for people.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set at link time: -ldflags "-X main.version=v0.1.0".
var version = "v0.0.0-dev"

// commands makes the subcommands; each file appends its own in init, so that adding one touches no other file.
var commands []func() *cobra.Command

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes one command line and returns the exit status: 0, 2 for an unknown command or flag or a wrong number of arguments, 1 for every other failure.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "aoe-csi: %v\n", err)
	if !started {
		return 2
	}
	return 1
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "aoe-csi",
		Short:         "Kubernetes volumes over plain Ethernet (ATA over Ethernet)",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("aoe-csi {{.Version}}\n")
	subcommands := make([]*cobra.Command, 0, len(commands))
	for _, newCommand := range commands {
		subcommands = append(subcommands, newCommand())
	}
	sort.Slice(subcommands, func(i, j int) bool { return subcommands[i].Name() < subcommands[j].Name() })
	root.AddCommand(subcommands...)
	return root
}
