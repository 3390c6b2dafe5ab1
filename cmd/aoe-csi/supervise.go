package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

func init() { commands = append(commands, newSuperviseCommand) }

// supervisor keeps one child process running.
type supervisor struct {
	command []string
	grace   time.Duration // from SIGTERM to SIGKILL
	steady  time.Duration // a child that lived at least this long is started again at once
	pause   time.Duration // before the next start of one that did not; doubles up to pauseMax
}

// pauseMax is the longest pause between two starts.
const pauseMax = 5 * time.Second

func newSuperviseCommand() *cobra.Command {
	s := supervisor{steady: time.Second, pause: 100 * time.Millisecond}
	cmd := &cobra.Command{
		Use:   "supervise -- COMMAND [ARGUMENT…]",
		Short: "Keep a command running: start it again at once when it dies",
		Long: `Supervise is the container's first process around the initiator: I/O waits while no initiator runs, so a dead one
is started again at once instead of after a container's back-off. SIGTERM and SIGINT end the command and supervise. A
command that ends well, or with status 2 (called wrongly), is not started again.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.command = args
			return s.run(cmd.Context())
		},
	}
	cmd.Flags().DurationVar(&s.grace, "grace", 25*time.Second, "how long the command may take to end before it is killed")
	return cmd
}

// run returns when ctx ended and the child with it, or when the child ended in a way that another start does not cure.
func (s *supervisor) run(ctx context.Context) error {
	// The child is killed when the thread that started it ends (PDEATHSIG): it must be one that lives as long as we do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := s.pause
	for {
		began := time.Now()
		err := s.once(ctx)
		switch {
		case ctx.Err() != nil:
			return err
		case err == nil:
			return nil
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() == 2 {
			return fmt.Errorf("run %s: %w", s.command[0], err)
		}
		if time.Since(began) >= s.steady {
			pause = s.pause
			klog.InfoS("The command died and is started again", "command", s.command[0], "how", exit.String())
			continue
		}
		klog.InfoS("The command died at once, it is started again after a pause", "command", s.command[0], "how", exit.String(), "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// once runs the child to its end. When ctx ends, the child gets SIGTERM and, after the grace, SIGKILL; having ended by
// the SIGTERM is no error.
func (s *supervisor) once(ctx context.Context) error {
	child := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = s.grace
	err := child.Run()
	if ctx.Err() == nil {
		return err
	}
	if child.ProcessState == nil {
		return nil // not started
	}
	if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return fmt.Errorf("end %s: killed, it had not ended within %v", s.command[0], s.grace)
	}
	if code := child.ProcessState.ExitCode(); code > 0 {
		return fmt.Errorf("end %s: exit status %d", s.command[0], code)
	}
	return nil
}
