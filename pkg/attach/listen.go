package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

// graceTime is how long calls that are under way may take when the server stops.
const graceTime = 3 * time.Second

// ErrRunning says that another initiator has the run directory, or the identity.
var ErrRunning = errors.New("another initiator is running")

// Lock is this process's hold on an initiator's directories.
type Lock struct{ files []*os.File }

// LockDirs makes the directories and makes sure that no other initiator uses one of them until the lock is closed: attachments have one
// server, and so has the identity by which devices in the kernel are known.
func LockDirs(runDir, stateDir string) (*Lock, error) {
	l := &Lock{}
	for _, dir := range []string{runDir, stateDir} {
		if dir == stateDir && len(l.files) > 0 && filepath.Clean(runDir) == filepath.Clean(stateDir) {
			break
		}
		f, err := lockDir(dir)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock directory %s: %w", dir, err), l.Close())
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "initiator.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// running says whether an initiator has the run directory. It makes nothing.
func running(runDir string) (bool, error) {
	f, err := os.Open(filepath.Join(runDir, "initiator.lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Close gives the directories free.
func (l *Lock) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Listen makes the API's unix socket, for root only. Whoever has the run directory's lock may replace a stale one.
func Listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Serve answers calls until ctx ends; it takes the listener. When it returns no call is under way.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(grpc.WaitForHandlers(true), grpc.MaxRecvMsgSize(1<<20))
	initiatorv1.RegisterInitiatorServer(server, s)
	stop := context.AfterFunc(ctx, func() {
		hard := time.AfterFunc(graceTime, server.Stop)
		defer hard.Stop()
		s.manager.stop() // ends watches
		server.GracefulStop()
	})
	err := server.Serve(listener)
	if stop() { // it ended by itself
		return fmt.Errorf("serve the initiator's API: %w", err)
	}
	server.Stop() // waits for the handlers
	return nil
}
