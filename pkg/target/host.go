package target

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// Host is what a shelf runs on: this machine, or a simulated one whose clock, disk, chance and scheduling are its own.
type Host interface {
	// Now is the time.
	Now() time.Time
	// BootID changes when the host loses what is not on its disks.
	BootID() (string, error)
	// Random fills p.
	Random(p []byte)
	// Open opens the directory of a shelf, and makes it if there is none. ErrLocked: another process has it.
	Open(dir string) (Media, error)
	// Turns is nil: tasks are goroutines.
	Turns() Turns
}

// Media is a shelf's directory: records and one file for the bytes of each LUN. What a method has changed when it returns nil is durable.
type Media interface {
	// Records shows the records of a bucket in the order of their keys; f borrows both.
	Records(bucket string, f func(key string, value []byte) error) error
	// Update makes all changes or none.
	Update(changes ...Change) error
	// Create makes a file of size bytes that read as zeroes; one of that name is an error.
	Create(name string, size int64) error
	// File opens a file, which must have at least size bytes.
	File(name string, size int64) (File, error)
	// Remove removes a file for good, and its mark; an absent one is success.
	Remove(name string) error
	// Names are all the files.
	Names() ([]string, error)
	// Mark notes that a file may have lost what was written to it, for Marks until Unmark, also in later processes. A mark may be lost
	// when BootID changes.
	Mark(name string) error
	Unmark(name string) error
	Marks() ([]string, error)
	// Room is the space there is for files, and what of it is free, in bytes.
	Room() (total, free int64, err error)
	// Close lets go of the directory. Close its files first.
	Close() error
}

// Change is one record of an Update; a nil Value removes it.
type Change struct {
	Bucket, Key string
	Value       []byte
}

// File is where a LUN's bytes are. Its methods may be called from several workers at once and allocate nothing.
type File interface {
	// ReadAt fills p from off; reading past the end is an error.
	ReadAt(p []byte, off int64) error
	// Cached makes a transfer of Data at Off if that needs no disk. It returns true when t.Err is the outcome: any but nil means that Data are
	// undefined, or have to be written again. False: t has become one for uring.Batch, and then has such an outcome.
	Cached(t *uring.Transfer) bool
	// WriteAt writes p at off; with durable set it returns when p is on the medium.
	WriteAt(p []byte, off int64, durable bool) error
	// Sync makes everything written before durable. An error is told once.
	Sync() error
	// Discard makes the range read as zeroes and gives its space back.
	Discard(off, n int64) error
	// Trims says whether Discard works here.
	Trims() bool
	// Grow makes the file at least n bytes long, durably; ErrNotDurable as Sync.
	Grow(n int64) error
	// Allocated is what the bytes take on the disk.
	Allocated() (int64, error)
	Close() error
}

// Turns runs a simulation's tasks one at a time: a task has its turn until it ends or waits in Await.
type Turns interface {
	// Go begins a task.
	Go(task func())
	// Await returns at once if ready says yes, else it ends the caller's turn and begins the next one after ready has said so. That is asked outside all turns, again and
	// again until it says so once; others may have turns between that and the caller's, so that what it waits for is to be taken in ready.
	Await(ready func() bool)
	// Timeout is context.WithTimeout on the simulation's clock.
	Timeout(d time.Duration) (context.Context, context.CancelFunc)
}

// machine is the host of a real shelf.
type machine struct{}

// Now implements Host.
func (machine) Now() time.Time { return time.Now() }

// BootID implements Host.
func (machine) BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Random implements Host.
func (machine) Random(p []byte) { rand.Read(p) } // never fails

// Open implements Host.
func (machine) Open(dir string) (Media, error) { return openDirectory(dir) }

// Turns implements Host.
func (machine) Turns() Turns { return nil }
