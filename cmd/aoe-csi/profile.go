package main

import (
	"errors"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// addProfile gives a command the flag --cpu-profile: what the process spends its processor time on is written there when the command ends.
func addProfile(cmd *cobra.Command) {
	var path string
	cmd.Flags().StringVar(&path, "cpu-profile", "", "file for a profile of this process, for go tool pprof; written when it ends")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if path == "" {
			return run(cmd, args)
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return errors.Join(err, f.Close())
		}
		defer func() {
			pprof.StopCPUProfile()
			err = errors.Join(err, f.Close())
		}()
		return run(cmd, args)
	}
}
