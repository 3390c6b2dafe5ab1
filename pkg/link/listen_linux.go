package link

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrInUse says that another process listens at the path.
	ErrInUse = errors.New("in use")
	// ErrNobody says that no connection waits to be accepted.
	ErrNobody = errors.New("nobody waits")
)

const localBacklog = 64

// Listener waits for initiators on the same host. It belongs to one thread.
type Listener struct {
	path string
	fd   int
	lock *os.File
}

// ListenLocal makes a socket at path, for root only (0600). What a killed process left there is replaced; a living listener
// is not: the error matches ErrInUse. A lock file beside the socket, path + ".lock", decides between processes that start at
// the same time; it stays.
func ListenLocal(path string) (*Listener, error) {
	l, err := listenLocal(path)
	if err != nil {
		return nil, fmt.Errorf("listen on local link %s: %w", path, err)
	}
	return l, nil
}

func listenLocal(path string) (*Listener, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	l := &Listener{path: path, fd: -1, lock: lock}
	if err := removeStale(path); err != nil {
		return nil, errors.Join(err, l.release())
	}
	if l.fd, err = localSocket(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	if err := l.bind(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeStale removes a socket that nobody listens on, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return errors.New("something that is no socket is there")
	}
	probe, err := localSocket()
	if err != nil {
		return err
	}
	err = unix.Connect(probe, &unix.SockaddrUnix{Name: path})
	closed := unix.Close(probe)
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.Join(ErrInUse, closed)
	}
	return errors.Join(os.Remove(path), closed)
}

// bind makes the socket file. Between bind and chmod nobody can connect, since nobody listens yet.
func (l *Listener) bind() error {
	if err := unix.Bind(l.fd, &unix.SockaddrUnix{Name: l.path}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := os.Chmod(l.path, 0o600); err != nil {
		return err
	}
	return os.NewSyscallError("listen", unix.Listen(l.fd, localBacklog))
}

// FD becomes readable when Accept has somebody.
func (l *Listener) FD() int { return l.fd }

// Accept returns the next connection without waiting; ErrNobody if there is none.
func (l *Listener) Accept() (*Local, error) {
	for {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case err == nil:
			link, err := newLocal(fd, LocalTargetMAC)
			if err != nil {
				return nil, fmt.Errorf("accept on %s: %w", l.path, err)
			}
			return link, nil
		case errors.Is(err, unix.EAGAIN):
			return nil, ErrNobody
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED):
		default:
			return nil, fmt.Errorf("accept on %s: %w", l.path, os.NewSyscallError("accept4", err))
		}
	}
}

// Close removes the socket file; links that were accepted stay. It is idempotent.
func (l *Listener) Close() error {
	if l.lock == nil {
		return nil
	}
	err := os.Remove(l.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, l.release()); err != nil {
		return fmt.Errorf("close local listener: %w", err)
	}
	return nil
}

// release gives socket and lock back, the lock last.
func (l *Listener) release() error {
	var err error
	if l.fd >= 0 {
		err = os.NewSyscallError("close", unix.Close(l.fd))
	}
	err = errors.Join(err, l.lock.Close())
	l.fd, l.lock = -1, nil
	return err
}
