package uring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLayout: the structures are as long as the kernel's.
func TestLayout(t *testing.T) {
	for name, size := range map[string][2]uintptr{
		"io_uring_params": {unsafe.Sizeof(ringParams{}), 120},
		"io_uring_sqe":    {unsafe.Sizeof(Entry{}), 64},
		"command in it":   {unsafe.Offsetof(Entry{}.Command), 48},
		"io_uring_cqe":    {unsafe.Sizeof(Completion{}), 16},
	} {
		if size[0] != size[1] {
			t.Errorf("%s has %d bytes, not %d", name, size[0], size[1])
		}
	}
}

const block = 4096

// inMemory is a non-blocking file of 64 blocks, each filled with its number.
func inMemory(t testing.TB) int {
	t.Helper()
	fd, err := unix.MemfdCreate("batch", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		if _, err := unix.Pwrite(fd, bytes.Repeat([]byte{byte(i)}, block), int64(i)*block); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// batches are one with a ring and one without.
func batches(t testing.TB) map[string]*Batch {
	t.Helper()
	with, err := NewBatch(8)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
		t.Skipf("no io_uring on this machine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(with.Close(), with.Close()); err != nil {
			t.Error(err)
		}
	})
	return map[string]*Batch{"ring": with, "without": {}}
}

// TestBatch: every transfer has the outcome that its own system call would have, however many there are and whatever becomes of others.
func TestBatch(t *testing.T) {
	for name, b := range batches(t) {
		for _, n := range []int{0, 1, 2, 7, 8, 9, 40} {
			t.Run(fmt.Sprint(name, "-", n), func(t *testing.T) { mixed(t, b, n) })
		}
	}
}

// mixed runs n transfers: reads, writes, one behind the end, one across it, one to nowhere.
func mixed(t *testing.T, b *Batch, n int) {
	fd := inMemory(t)
	ts := make([]Transfer, n)
	want := make([]error, n)
	for i := range ts {
		ts[i] = Transfer{FD: fd, Data: make([]byte, block), Off: int64(i) * block, Err: io.EOF}
		switch i % 5 {
		case 1:
			ts[i].Write, ts[i].Data = true, bytes.Repeat([]byte{0xee}, block)
		case 2:
			ts[i].Off, want[i] = 64*block-512, io.ErrUnexpectedEOF
		case 3:
			ts[i].FD, want[i] = 1<<20, syscall.EBADF
		}
	}
	b.Run(ts)
	for i, tr := range ts {
		if tr.Err != want[i] { //nolint:errorlint // exactly this one
			t.Errorf("transfer %d: %v, want %v", i, tr.Err, want[i])
		}
		content := make([]byte, block)
		switch i % 5 {
		case 1:
			if _, err := unix.Pread(fd, content, tr.Off); err != nil || !bytes.Equal(content, tr.Data) {
				t.Errorf("transfer %d was not written: %v", i, err)
			}
		case 0, 4:
			if !bytes.Equal(tr.Data, bytes.Repeat([]byte{byte(i)}, block)) {
				t.Errorf("transfer %d read something else: % x …", i, tr.Data[:8])
			}
		}
	}
}

// TestNoWait: what a page cache has is read, what it has not, or a file system cannot do without waiting, fails; nothing is written in that case.
func TestNoWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 8*block), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for name, b := range batches(t) {
		ts := make([]Transfer, 4)
		for i := range ts {
			ts[i] = Transfer{FD: int(f.Fd()), Data: make([]byte, block), Off: int64(i) * block, NoWait: true}
		}
		b.Run(ts)
		for i, tr := range ts {
			if tr.Err == nil && tr.Data[block-1] != 7 {
				t.Errorf("%s: transfer %d read something else", name, i)
			}
			if tr.Err != nil && !errors.Is(tr.Err, syscall.EOPNOTSUPP) && !errors.Is(tr.Err, syscall.EAGAIN) {
				t.Errorf("%s: transfer %d: %v", name, i, tr.Err)
			}
			ts[i].Write = true
			ts[i].Data = bytes.Repeat([]byte{byte(i)}, block)
		}
		b.Run(ts)
		for i, tr := range ts {
			content := make([]byte, block)
			if _, err := f.ReadAt(content, tr.Off); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]byte{true: byte(i), false: 7}[tr.Err == nil]; content[0] != want {
				t.Errorf("%s: write %d ended with %v, there is %d", name, i, tr.Err, content[0])
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{7}, block), tr.Off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestNoAllocation: a batch in use takes nothing from the heap.
func TestNoAllocation(t *testing.T) {
	for name, b := range batches(t) {
		fd := inMemory(t)
		ts := make([]Transfer, 12)
		for i := range ts {
			ts[i] = Transfer{FD: fd, Data: make([]byte, block), Off: int64(i) * block, Write: i%2 == 0}
		}
		ts[5].FD = 1 << 20
		if n := testing.AllocsPerRun(100, func() { b.Run(ts) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkRun: a batch of reads of 4 KiB from memory, with a ring and with a system call for each.
func BenchmarkRun(b *testing.B) {
	for name, batch := range batches(b) {
		for _, n := range []int{1, 2, 4, 8} {
			b.Run(fmt.Sprint(name, "-", n), func(b *testing.B) {
				fd := inMemory(b)
				ts := make([]Transfer, n)
				for i := range ts {
					ts[i] = Transfer{FD: fd, Data: make([]byte, block), Off: int64(7*i%64) * block}
				}
				for b.Loop() {
					batch.Run(ts)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/transfer")
			})
		}
	}
}
