// Package shutdown tells whether the machine is going down.
package shutdown

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godbus/dbus/v5"
)

// Where systemd and logind are asked (org.freedesktop.systemd1(5), org.freedesktop.login1(5)).
const (
	privateSocket = "run/systemd/private"
	systemBus     = "run/dbus/system_bus_socket"
)

// question is one property that says it.
type question struct {
	socket               string
	bus                  bool // a bus, which wants to be greeted; else the service itself is at the other end
	name, path, property string
	yes                  any
}

// logind knows first: it waits for the kubelet to end its pods before systemd begins to stop anything.
var questions = []question{
	{privateSocket, false, "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager.SystemState", "stopping"},
	{systemBus, true, "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager.PreparingForShutdown", true},
}

// Pending says whether the machine whose root directory this is, is shutting down or restarting. From a container that is
// "/proc/1/root", in the host's PID namespace (systemd answers nobody whose process it cannot see). The error says why nobody could
// be asked; a machine without systemd is never shutting down.
func Pending(ctx context.Context, root string) (bool, error) {
	var errs []error
	for _, q := range questions {
		socket := filepath.Join(root, q.socket)
		if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		answer, err := q.ask(ctx, socket)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if answer == q.yes {
			return true, nil
		}
	}
	return false, errors.Join(errs...)
}

// ask returns the property's value.
func (q *question) ask(ctx context.Context, socket string) (value any, err error) {
	conn, err := dbus.Dial("unix:path="+socket, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.Auth(nil); err != nil {
		return nil, err
	}
	if q.bus {
		if err := conn.Hello(); err != nil {
			return nil, err
		}
	}
	answer, err := conn.Object(q.name, dbus.ObjectPath(q.path)).GetProperty(q.property)
	return answer.Value(), err
}
