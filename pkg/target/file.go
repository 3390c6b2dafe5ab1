package target

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// sparseFile is a sparse file.
type sparseFile struct {
	file  *os.File
	fd    int
	punch bool
	// memory: the file system has no disk, so that nothing waits for one.
	memory bool
	writes atomic.Int32 // how they can be done without a disk
}

// Kinds of file systems.
const (
	writesUnknown = iota // tell when it is tried
	writesWait           // only with the permission to wait for the disk: ext4
	writesBatched        // by io_uring at once: XFS, Btrfs
	writesSingly         // a file in memory, but not by io_uring
)

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
func openFile(path string, size int64) (*sparseFile, error) {
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
	b := &sparseFile{file: f, fd: int(f.Fd())}
	// Punching a hole behind the end changes nothing and tells whether the file system can.
	b.punch = unix.Fallocate(b.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, info.Size(), 4096) == nil
	var fs unix.Statfs_t
	if err := unix.Fstatfs(b.fd, &fs); err != nil {
		return nil, errors.Join(fmt.Errorf("open LUN file %s: %w", path, err), f.Close())
	}
	b.memory = fs.Type == unix.TMPFS_MAGIC
	if b.memory {
		if err := b.inMemory(); err != nil {
			return nil, errors.Join(fmt.Errorf("open LUN file %s: %w", path, err), f.Close())
		}
	}
	return b, nil
}

// inMemory has io_uring read and write a file in memory at once, instead of waking a thread for it: O_NONBLOCK does that for reads, and with O_DIRECT,
// which tmpfs knows since Linux 6.6 and does nothing else for, it does not ask whether the file system's buffered writes can go without waiting.
func (b *sparseFile) inMemory() error {
	flags, err := unix.FcntlInt(uintptr(b.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	b.writes.Store(writesBatched)
	if _, err = unix.FcntlInt(uintptr(b.fd), unix.F_SETFL, flags|unix.O_NONBLOCK|unix.O_DIRECT); errors.Is(err, unix.EINVAL) {
		b.writes.Store(writesSingly)
		_, err = unix.FcntlInt(uintptr(b.fd), unix.F_SETFL, flags|unix.O_NONBLOCK)
	}
	return err
}

// ReadAt implements File.
func (b *sparseFile) ReadAt(p []byte, off int64) error {
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

// Cached implements File.
func (b *sparseFile) Cached(t *uring.Transfer) bool {
	t.FD, t.NoWait = b.fd, !b.memory
	if !t.Write {
		return false
	}
	switch b.writes.Load() {
	case writesBatched:
		return false
	case writesWait:
		t.Err = unix.EOPNOTSUPP
		return true
	case writesUnknown:
		t.Run()
		if errors.Is(t.Err, unix.EOPNOTSUPP) {
			b.writes.Store(writesWait)
		} else {
			b.writes.Store(writesBatched)
		}
	default:
		t.Run()
	}
	return true
}

// WriteAt implements File.
func (b *sparseFile) WriteAt(p []byte, off int64, durable bool) error {
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

func (b *sparseFile) write(p []byte, off int64, durable bool) (int, error) {
	if !durable {
		return unix.Pwrite(b.fd, p, off)
	}
	iov := [1][]byte{p}
	return unix.Pwritev2(b.fd, iov[:], off, unix.RWF_DSYNC)
}

// Sync implements File.
func (b *sparseFile) Sync() error {
	for {
		if err := unix.Fdatasync(b.fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Discard implements File.
func (b *sparseFile) Discard(off, n int64) error {
	for {
		err := unix.Fallocate(b.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Trims implements File.
func (b *sparseFile) Trims() bool { return b.punch }

// Grow implements File.
func (b *sparseFile) Grow(n int64) error {
	info, err := b.file.Stat()
	if err == nil && info.Size() < n {
		err = b.file.Truncate(n)
	}
	if err == nil {
		if err = b.file.Sync(); err != nil {
			err = fmt.Errorf("%w: %w", ErrNotDurable, err)
		}
	}
	if err != nil {
		return fmt.Errorf("grow LUN file: %w", err)
	}
	return nil
}

// Allocated implements File.
func (b *sparseFile) Allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(b.fd, &st); err != nil {
		return 0, fmt.Errorf("stat LUN file: %w", err)
	}
	return st.Blocks * 512, nil
}

// Close implements File.
func (b *sparseFile) Close() error { return b.file.Close() }
