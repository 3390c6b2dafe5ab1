package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall" //nolint:depguard // flock: the standard library has no other way to keep two controllers apart
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// FileStore keeps intents in a directory, for a single controller without Kubernetes:
// volumes/, slots/ and nodes/ with one JSON file each. Nodes may be written by other
// processes, the rest only by the one that called Lock.
type FileStore struct {
	dir  string
	mu   sync.Mutex // reading, comparing and writing a file is one step
	lock *os.File
}

var _ volume.Store = (*FileStore)(nil)

// OpenFileStore opens the directory and makes it if it is not there.
func OpenFileStore(dir string) (*FileStore, error) {
	for _, sub := range []string{volumesDir, slotsDir, nodesDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return &FileStore{dir: dir}, nil
}

// Lock makes this process the only controller of the directory until Close. It fails if
// there is another.
func (s *FileStore) Lock() error {
	path := filepath.Join(s.dir, "controller.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock store %s: another controller uses it: %w", s.dir, err), f.Close())
	}
	s.lock = f
	return s.sweep()
}

// sweep removes half-written files that a crash left where only the controller writes.
func (s *FileStore) sweep() error {
	for _, dir := range []string{volumesDir, slotsDir} {
		left, err := filepath.Glob(filepath.Join(s.dir, dir, "*"+temporary))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close gives the lock up.
func (s *FileStore) Close() error {
	if s.lock == nil {
		return nil
	}
	f := s.lock
	s.lock = nil
	return f.Close()
}

// CreateVolume implements volume.Store.
func (s *FileStore) CreateVolume(_ context.Context, r *volume.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Created = time.Now().UTC().Truncate(time.Second)
	r.Version = "1"
	return s.create(volumesDir, r.Name, newVolumeFile(r))
}

// GetVolume implements volume.Store.
func (s *FileStore) GetVolume(_ context.Context, name string) (*volume.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getVolume(name)
}

func (s *FileStore) getVolume(name string) (*volume.Record, error) {
	var f volumeFile
	if err := s.read(volumesDir, fileName(name), &f); err != nil {
		return nil, err
	}
	return f.record()
}

// ListVolumes implements volume.Store.
func (s *FileStore) ListVolumes(context.Context) ([]volume.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var records []volume.Record
	err := s.list(volumesDir, func(file string) error {
		var f volumeFile
		if err := s.read(volumesDir, file, &f); err != nil {
			return err
		}
		r, err := f.record()
		if err == nil {
			records = append(records, *r)
		}
		return err
	})
	sortRecords(records)
	return records, err
}

// UpdateVolume implements volume.Store.
func (s *FileStore) UpdateVolume(_ context.Context, r *volume.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.getVolume(r.Name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("%w: volume %s was removed", volume.ErrStale, r.Name)
	case err != nil:
		return err
	case have.Version != r.Version || have.ID != r.ID:
		return fmt.Errorf("%w: volume %s", volume.ErrStale, r.Name)
	}
	next := *r
	if next.Version, err = nextVersion(have.Version); err != nil {
		return err
	}
	if err := s.replace(volumesDir, r.Name, newVolumeFile(&next)); err != nil {
		return err
	}
	r.Version = next.Version
	return nil
}

// DeleteVolume implements volume.Store.
func (s *FileStore) DeleteVolume(_ context.Context, r *volume.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.getVolume(r.Name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	case have.Version != r.Version || have.ID != r.ID:
		return fmt.Errorf("%w: volume %s", volume.ErrStale, r.Name)
	}
	return s.remove(volumesDir, r.Name)
}

// ClaimSlot implements volume.Store.
func (s *FileStore) ClaimSlot(_ context.Context, slot volume.Slot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.create(slotsDir, slot.Addr.String(), newSlotFile(slot))
	if !errors.Is(err, volume.ErrExists) {
		return err
	}
	have, err := s.getSlot(slot.Addr)
	if err != nil {
		return err
	}
	if *have != slot {
		return fmt.Errorf("%w: slot %s is volume %s's", volume.ErrExists, slot.Addr, have.VolumeName)
	}
	return nil
}

// GetSlot implements volume.Store.
func (s *FileStore) GetSlot(_ context.Context, addr aoe.Addr) (*volume.Slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getSlot(addr)
}

func (s *FileStore) getSlot(addr aoe.Addr) (*volume.Slot, error) {
	var f slotFile
	if err := s.read(slotsDir, fileName(addr.String()), &f); err != nil {
		return nil, err
	}
	return f.slot()
}

// ListSlots implements volume.Store.
func (s *FileStore) ListSlots(context.Context) ([]volume.Slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var slots []volume.Slot
	err := s.list(slotsDir, func(file string) error {
		var f slotFile
		if err := s.read(slotsDir, file, &f); err != nil {
			return err
		}
		slot, err := f.slot()
		if err == nil {
			slots = append(slots, *slot)
		}
		return err
	})
	return slots, err
}

// ReleaseSlot implements volume.Store.
func (s *FileStore) ReleaseSlot(_ context.Context, slot volume.Slot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.getSlot(slot.Addr)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	case *have != slot:
		return nil
	}
	return s.remove(slotsDir, slot.Addr.String())
}

// GetNode implements volume.Store.
func (s *FileStore) GetNode(_ context.Context, name string) (*volume.Node, error) {
	var f nodeFile
	if err := s.read(nodesDir, fileName(name), &f); err != nil {
		return nil, err
	}
	return f.node()
}

// ListNodes implements volume.Store.
func (s *FileStore) ListNodes(context.Context) ([]volume.Node, error) {
	var nodes []volume.Node
	err := s.list(nodesDir, func(file string) error {
		var f nodeFile
		if err := s.read(nodesDir, file, &f); err != nil {
			return err
		}
		n, err := f.node()
		if err == nil {
			nodes = append(nodes, *n)
		}
		return err
	})
	return nodes, err
}

// PutNode implements volume.Store.
func (s *FileStore) PutNode(_ context.Context, n *volume.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replace(nodesDir, n.Name, newNodeFile(n))
}

// fileName returns the file of an object. Names may be anything (CSI allows every
// character): what could mean something to a file system is escaped.
func fileName(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && b.Len() > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	// A name of 128 characters, all of them escaped, would be too long for a file name.
	if b.Len() > maxFileName {
		return hashedName(name) + ".json"
	}
	return b.String() + ".json"
}
