//go:build vm

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestSyncWithoutInitiator: the initiator is ended for good while a file system has dirty pages. They wait for the next one rather
// than being lost, and it lets them go.
func TestSyncWithoutInitiator(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		const patience = 10 * time.Second
		target, host := l.Host("t").Target(7), l.Host("a")
		gen := managed(t, target, "e7.1", "64Mi", host)
		i := host.Initiator()
		device := i.Attach("e7.1", "--generation", gen)
		silent := l.Complaints()
		dir := mount(t, l, device)
		if err := os.WriteFile(filepath.Join(dir, "dirty"), make([]byte, mib), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := i.Terminate(15 * time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		synced := make(chan error, 1)
		go func() { synced <- syncFileSystem(dir) }()
		select {
		case err := <-synced:
			t.Errorf("sync ended without an initiator: %v", err)
		case <-time.After(patience):
		}
		i.StartAgain()
		select {
		case err := <-synced:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			l.Diagnose()
			t.Fatal("sync does not end with the next initiator")
		}
		figure(t, "sync waited for the next initiator, %v in all", time.Since(began).Round(time.Millisecond))
		l.Run("umount", dir)
		i.Detach("e7.1")
		silent()
		i.NothingLeft()
	})
}

func syncFileSystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
