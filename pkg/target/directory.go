package target

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// directory is a shelf's directory on this machine: a lock, the records in a file of bbolt, the LUNs' bytes in sparse files.
type directory struct {
	lock *os.File
	luns *os.File // the directory of LUN files, for fsync
	db   *bolt.DB
}

const (
	fileSuffix = ".img"
	markSuffix = ".lost"
)

func openDirectory(dir string) (Media, error) {
	d := new(directory)
	if err := d.open(dir); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *directory) open(dir string) (err error) {
	files := filepath.Join(dir, "luns")
	if err = os.MkdirAll(files, 0o700); err != nil {
		return err
	}
	if d.lock, err = lockDir(dir); err != nil {
		return err
	}
	if d.luns, err = os.Open(files); err != nil {
		return err
	}
	path := filepath.Join(dir, "meta.db")
	if d.db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second}); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err = d.db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{shelfBucket, lunBucket} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	return syncDir(dir)
}

// lockDir makes sure that no other process serves the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Records implements Media.
func (d *directory) Records(bucket string, f func(key string, value []byte) error) error {
	return d.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(key, value []byte) error { return f(string(key), value) })
	})
}

// Update implements Media.
func (d *directory) Update(changes ...Change) error {
	return d.db.Update(func(tx *bolt.Tx) error {
		for _, c := range changes {
			b, key := tx.Bucket([]byte(c.Bucket)), []byte(c.Key)
			if c.Value == nil {
				if err := b.Delete(key); err != nil {
					return err
				}
				continue
			}
			if err := b.Put(key, c.Value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *directory) path(name string) string { return filepath.Join(d.luns.Name(), name+fileSuffix) }

// Create implements Media.
func (d *directory) Create(name string, size int64) error {
	return createFile(d.luns, d.path(name), size)
}

// File implements Media.
func (d *directory) File(name string, size int64) (File, error) {
	f, err := openFile(d.path(name), size)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Remove implements Media.
func (d *directory) Remove(name string) error {
	if err := d.Unmark(name); err != nil {
		return err
	}
	return removeFile(d.luns, d.path(name))
}

// Names implements Media.
func (d *directory) Names() ([]string, error) { return d.names(fileSuffix) }

func (d *directory) names(suffix string) ([]string, error) {
	entries, err := os.ReadDir(d.luns.Name())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func (d *directory) mark(name string) string { return filepath.Join(d.luns.Name(), name+markSuffix) }

// Mark implements Media. The mark is an empty file: the page cache keeps it while the host is up, whatever the disk does.
func (d *directory) Mark(name string) error {
	f, err := os.OpenFile(d.mark(name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("mark LUN file: %w", err)
	}
	return f.Close()
}

// Unmark implements Media.
func (d *directory) Unmark(name string) error {
	if err := os.Remove(d.mark(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmark LUN file: %w", err)
	}
	return nil
}

// Marks implements Media.
func (d *directory) Marks() ([]string, error) { return d.names(markSuffix) }

// Room implements Media.
func (d *directory) Room() (total, free int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.luns.Fd()), &fs); err != nil {
		return 0, 0, fmt.Errorf("statfs: %w", err)
	}
	return int64(fs.Blocks) * fs.Bsize, int64(fs.Bavail) * fs.Bsize, nil
}

// Close implements Media.
func (d *directory) Close() error {
	var err error
	if d.db != nil {
		err = d.db.Close()
	}
	if d.luns != nil {
		err = errors.Join(err, d.luns.Close())
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}
