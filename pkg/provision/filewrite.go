package provision

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// The directories of a FileStore.
const (
	volumesDir = "volumes"
	slotsDir   = "slots"
	nodesDir   = "nodes"
)

// maxFileName leaves room for suffixes within the 255 bytes of a file name.
const maxFileName = 200

// temporary marks files that are being written; leftovers of a crash mean nothing.
const temporary = ".tmp"

// hashedName stands for a name that cannot be one where it has to be.
func hashedName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "x-" + hex.EncodeToString(sum[:20])
}

// read decodes a file; volume.ErrNotFound if there is none.
func (s *FileStore) read(dir, file string, into any) error {
	path := filepath.Join(s.dir, dir, file)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", volume.ErrNotFound, strings.TrimSuffix(filepath.Join(dir, file), ".json"))
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// list calls f with the name of each file, in order. One that goes away meanwhile is
// left out.
func (s *FileStore) list(dir string, f func(file string) error) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		if err := f(e.Name()); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return err
		}
	}
	return nil
}

// create makes a file that appears whole or not at all; volume.ErrExists if it is there.
func (s *FileStore) create(dir, name string, content any) error {
	return s.write(dir, name, content, func(from, to string) error {
		// Unlike rename, link refuses to replace; unlike O_EXCL, it never shows half a file.
		err := os.Link(from, to)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s", volume.ErrExists, name)
		}
		return err
	})
}

// replace makes or replaces a file in one step.
func (s *FileStore) replace(dir, name string, content any) error {
	return s.write(dir, name, content, os.Rename)
}

// write puts the content durably into a temporary file, then into place, then makes the
// directory durable.
func (s *FileStore) write(dir, name string, content any, place func(from, to string) error) (err error) {
	b, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, dir)
	f, err := os.CreateTemp(path, "*"+temporary)
	if err != nil {
		return err
	}
	defer func() {
		// After a rename there is nothing left to remove.
		if gone := os.Remove(f.Name()); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), filepath.Join(path, fileName(name))); err != nil {
		return err
	}
	return syncDir(path)
}

// remove takes a file away durably.
func (s *FileStore) remove(dir, name string) error {
	path := filepath.Join(s.dir, dir)
	err := os.Remove(filepath.Join(path, fileName(name)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func sortRecords(records []volume.Record) {
	slices.SortFunc(records, func(a, b volume.Record) int { return strings.Compare(a.Name, b.Name) })
}
