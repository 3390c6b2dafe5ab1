package uring

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/brief"
)

// rwNoWait is RWF_NOWAIT of linux/fs.h.
const rwNoWait = 8

// Transfer is one pread or pwrite. It is of something that needs no disk, or has NoWait set: the Go runtime is not told of the system call in the
// first case (package brief has the reasons), and is in the second, since a disk that has too much to do makes even such a call wait.
type Transfer struct {
	FD    int
	Data  []byte // borrowed from Run until it returns; not empty
	Off   int64  // bytes
	Write bool
	// NoWait has it fail with EAGAIN rather than wait for what a disk has, or with EOPNOTSUPP where the file system cannot promise that
	// (RWF_NOWAIT).
	NoWait bool
	// Err is the outcome: nil when all of Data was transferred, io.ErrUnexpectedEOF or io.ErrShortWrite when a part was, or an errno.
	Err error
}

// Batch makes transfers many at a time. One thread at a time may use it.
type Batch struct {
	ring    *Ring // nil: there is no io_uring for this process
	entries int
	running []Transfer // has the garbage collector leave them, and what they point to, where the kernel looks for them
}

// NewBatch makes a batch of so many transfers at once, a power of two; Close ends it. Where io_uring is not allowed, or too old, an error says
// so, and the batch makes a system call for each transfer.
func NewBatch(entries int) (*Batch, error) {
	r, err := New(uint32(entries), 0)
	if err != nil {
		return &Batch{}, err
	}
	if r.features&featRWCurPos == 0 {
		return &Batch{}, errors.Join(errors.New("io_uring of a kernel before 5.6"), r.Close())
	}
	return &Batch{ring: r, entries: entries}, nil
}

// Run makes the transfers, which it borrows, and sets their Err: in their order, but for one that has to wait, which later ones do not wait for.
// It returns when all are done: at once if none has to wait. A descriptor that cannot do NoWait must be non-blocking (O_NONBLOCK): only then
// does io_uring try at once, instead of waking a thread for it.
func (b *Batch) Run(ts []Transfer) {
	b.running = ts
	for b.ring != nil && len(ts) > 1 { // one alone is cheaper without
		n := min(len(ts), b.entries)
		b.run(ts[:n])
		ts = ts[n:]
	}
	for i := range ts {
		ts[i].Run()
	}
	b.running = nil
}

// run makes up to as many transfers as the ring has entries.
func (b *Batch) run(ts []Transfer) {
	told := false
	for i := range ts {
		b.put(&ts[i], uint64(i))
		told = told || ts[i].NoWait
	}
	for done := 0; done < len(ts); told = true { // what did not happen at once is waited for
		errno := b.ring.enter(wait(told, len(ts)-done), !told)
		done += b.reap(ts)
		if left := b.ring.Waiting(); left > 0 && errno != 0 && errno != unix.EINTR { // no memory, say
			b.ring.TakeBack()
			for i := range ts[len(ts)-left:] {
				ts[len(ts)-left+i].Run()
			}
			done += left
		}
	}
}

// wait is how many completions an io_uring_enter of which the runtime knows waits for.
func wait(told bool, n int) uint32 {
	if told {
		return uint32(n)
	}
	return 0
}

// put makes a transfer a submission.
func (b *Batch) put(t *Transfer, i uint64) {
	e := b.ring.Next()
	e.Opcode, e.FD, e.UserData = OpRead, int32(t.FD), i
	if t.Write {
		e.Opcode = OpWrite
	}
	e.Addr, e.Len, e.Off = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(t.Data)))), uint32(len(t.Data)), uint64(t.Off)
	if t.NoWait {
		e.RWFlags = rwNoWait
	}
}

// reap books what is done.
func (b *Batch) reap(ts []Transfer) (n int) {
	for {
		c, ok := b.ring.Take()
		if !ok {
			return n
		}
		t := &ts[c.UserData]
		if c.Result < 0 {
			t.done(0, syscall.Errno(-c.Result))
		} else {
			t.done(int(c.Result), nil)
		}
		n++
	}
}

// done books the outcome of a system call.
func (t *Transfer) done(n int, err error) {
	switch {
	case err != nil || n == len(t.Data):
		t.Err = err
	case t.Write:
		t.Err = io.ErrShortWrite
	default:
		t.Err = io.ErrUnexpectedEOF
	}
}

// Run makes the transfer, by a system call of its own.
func (t *Transfer) Run() {
	for {
		n, err := t.call()
		if err != syscall.EINTR { //nolint:errorlint // it is the system call's, as it came
			t.done(n, err)
			return
		}
	}
}

// call is the transfer's system call.
func (t *Transfer) call() (int, error) {
	switch {
	case t.NoWait && t.Write:
		iov := [1][]byte{t.Data}
		return unix.Pwritev2(t.FD, iov[:], t.Off, unix.RWF_NOWAIT)
	case t.NoWait:
		iov := [1][]byte{t.Data}
		return unix.Preadv2(t.FD, iov[:], t.Off, unix.RWF_NOWAIT)
	case t.Write:
		return brief.Pwrite(t.FD, t.Data, t.Off)
	default:
		return brief.Pread(t.FD, t.Data, t.Off)
	}
}

// Close gives the ring back. Idempotent.
func (b *Batch) Close() error {
	if b.ring == nil {
		return nil
	}
	if err := b.ring.Close(); err != nil {
		return fmt.Errorf("close batch: %w", err)
	}
	return nil
}
