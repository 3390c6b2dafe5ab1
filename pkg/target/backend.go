package target

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// backend is where a LUN's bytes are. Its methods may be called from several workers at once and allocate nothing.
type backend interface {
	// readAt fills p from off; reading past the end is an error.
	readAt(p []byte, off int64) error
	// readCached is readAt if that needs no disk, else it returns false and p is undefined.
	readCached(p []byte, off int64) bool
	// writeAt writes p at off; with durable set it returns when p is on the medium.
	writeAt(p []byte, off int64, durable bool) error
	// sync makes everything written before durable.
	sync() error
	// discard makes the range read as zeroes and gives its space back.
	discard(off, n int64) error
	// trims says whether discard works here.
	trims() bool
	// grow makes the backend at least n bytes long, durably.
	grow(n int64) error
	// allocated is what the bytes take on the disk.
	allocated() (int64, error)
	close() error
}

// fileBackend is a sparse file.
type fileBackend struct {
	file  *os.File
	fd    int
	punch bool
}

// createFile makes a sparse file of size bytes that survives a crash of the host once it returns; the caller
// writes the metadata that points at it afterwards. A left-over of the same name is an error.
func createFile(dir *os.File, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create LUN file: %w", err)
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create LUN file %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// removeFile removes a LUN's bytes for good; an absent file is success.
func removeFile(dir *os.File, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove LUN file: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("remove LUN file %s: %w", path, err)
	}
	return nil
}

// openFile opens a LUN's file, which must have at least size bytes.
func openFile(path string, size int64) (*fileBackend, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open LUN file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < size {
		err = fmt.Errorf("has %d bytes, its metadata say %d", info.Size(), size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open LUN file %s: %w", path, err), f.Close())
	}
	b := &fileBackend{file: f, fd: int(f.Fd())}
	// Punching a hole behind the end changes nothing and tells whether the file system can.
	b.punch = unix.Fallocate(b.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, info.Size(), 4096) == nil
	return b, nil
}

func (b *fileBackend) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(b.fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		}
		if n > 0 {
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func (b *fileBackend) readCached(p []byte, off int64) bool {
	iov := [1][]byte{p}
	n, err := unix.Preadv2(b.fd, iov[:], off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

func (b *fileBackend) writeAt(p []byte, off int64, durable bool) error {
	for len(p) > 0 {
		n, err := b.write(p, off, durable)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		}
		if n > 0 {
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func (b *fileBackend) write(p []byte, off int64, durable bool) (int, error) {
	if !durable {
		return unix.Pwrite(b.fd, p, off)
	}
	iov := [1][]byte{p}
	return unix.Pwritev2(b.fd, iov[:], off, unix.RWF_DSYNC)
}

func (b *fileBackend) sync() error {
	for {
		if err := unix.Fdatasync(b.fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (b *fileBackend) discard(off, n int64) error {
	for {
		err := unix.Fallocate(b.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (b *fileBackend) trims() bool { return b.punch }

func (b *fileBackend) grow(n int64) error {
	info, err := b.file.Stat()
	if err == nil && info.Size() < n {
		err = b.file.Truncate(n)
	}
	if err == nil {
		if err = b.file.Sync(); err != nil {
			err = fmt.Errorf("%w: %w", errSync, err)
		}
	}
	if err != nil {
		return fmt.Errorf("grow LUN file: %w", err)
	}
	return nil
}

func (b *fileBackend) allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(b.fd, &st); err != nil {
		return 0, fmt.Errorf("stat LUN file: %w", err)
	}
	return st.Blocks * 512, nil
}

func (b *fileBackend) close() error { return b.file.Close() }

// errSync: an fsync failed; acknowledged writes may be gone.
var errSync = errors.New("data not durable")
