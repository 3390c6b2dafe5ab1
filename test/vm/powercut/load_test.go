//go:build vm

package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	writers         = 8
	blocksPerWriter = 128
	// loadMagic begins each block of the load, so that the disk can tell it from a file system's own.
	loadMagic = 0x616f655f6c6f6164
)

// load writes to a device as fast as it can, with an fsync after every few blocks, and knows what was promised.
type load struct {
	path    string
	writers [writers]*writer
	stop    atomic.Bool
	group   sync.WaitGroup
}

// writer has blocks of its own. All but its counters belong to its goroutine while that runs.
type writer struct {
	path   string
	first  int64                   // block
	issued [blocksPerWriter]uint64 // newest version that was written, or may have been
	acked  [blocksPerWriter]uint64 // newest that an fsync which returned 0 came after
	found  [blocksPerWriter]uint64 // what the last check found
	base   uint64                  // the newest version at that time
	seq    uint64
	dice   *rand.Rand
	buf    []byte
	err    error // why it ended, nil if it was stopped

	synced atomic.Uint64 // fsyncs that returned 0
}

func newLoad(path string, seed uint64) (*load, error) {
	l := &load{path: path}
	for i := range l.writers {
		buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, for O_DIRECT
		if err != nil {
			return nil, err
		}
		l.writers[i] = &writer{path: path, first: int64(i) * blocksPerWriter, dice: rand.New(rand.NewPCG(seed, uint64(i))), buf: buf}
	}
	return l, nil
}

// start has all writers write until end, or until one is told of a loss.
func (l *load) start() {
	l.stop.Store(false)
	for _, w := range l.writers {
		w.err = nil
		l.group.Go(func() { w.err = w.run(&l.stop) })
	}
}

// end stops the writers and waits for them; it says how many ended by themselves, since a write or an fsync failed with EIO. Any other error is
// returned.
func (l *load) end() (failed int, err error) {
	l.stop.Store(true)
	l.group.Wait()
	for i, w := range l.writers {
		switch {
		case errors.Is(w.err, unix.EIO):
			failed++
		case w.err != nil:
			err = errors.Join(err, fmt.Errorf("writer %d: %w", i, w.err))
		}
	}
	return failed, err
}

// synced is how many fsyncs returned 0, of each writer.
func (l *load) synced() (n [writers]uint64) {
	for i, w := range l.writers {
		n[i] = w.synced.Load()
	}
	return n
}

func (w *writer) run(stop *atomic.Bool) error {
	f, err := os.OpenFile(w.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for !stop.Load() {
		for range 1 + w.dice.IntN(4) {
			b := w.dice.IntN(blocksPerWriter)
			w.seq++
			w.issued[b] = w.seq
			w.fill(b)
			if _, err := f.WriteAt(w.buf, (w.first+int64(b))*blockSize); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if err := unix.Fsync(int(f.Fd())); err != nil {
			return fmt.Errorf("fsync: %w", err)
		}
		w.acked = w.issued
		w.synced.Add(1)
	}
	return nil
}

// fill makes buf the newest version of a block: no two are alike, and each of its sectors says what it is.
func (w *writer) fill(b int) {
	for at := 0; at < len(w.buf); at += 512 {
		s := w.buf[at : at+512]
		binary.LittleEndian.PutUint64(s, loadMagic)
		binary.LittleEndian.PutUint64(s[8:], uint64(w.first)+uint64(b))
		binary.LittleEndian.PutUint64(s[16:], w.issued[b])
		for i := 24; i < len(s); i += 8 {
			binary.LittleEndian.PutUint64(s[i:], w.issued[b]*0x9e3779b97f4a7c15+uint64(i))
		}
	}
}

// check reads everything back, past the page cache. Each block has a version that was written to it since the check before, or what that one found; and none
// older than was promised. It says how many blocks were promised something, and how many lost what was not. What it found is durable when it
// returns without an error, and must not change by itself any more.
func (l *load) check() (promised, lost int, err error) {
	f, err := os.OpenFile(l.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for i, w := range l.writers {
		for b := range w.issued {
			if _, err := f.ReadAt(w.buf, (w.first+int64(b))*blockSize); err != nil {
				return promised, lost, err
			}
			version, err := w.version(b)
			switch {
			case err != nil:
				return promised, lost, fmt.Errorf("writer %d, block %d: %w", i, b, err)
			case version < w.acked[b]:
				return promised, lost, fmt.Errorf("%w: writer %d, block %d: version %d, fsync promised %d; newest written %d", errLost, i, b, version, w.acked[b], w.issued[b])
			case version > w.issued[b] || version <= w.base && version != w.found[b]:
				return promised, lost, fmt.Errorf("writer %d, block %d: version %d, before it was %d; newest written %d", i, b, version, w.found[b], w.issued[b])
			}
			if w.acked[b] > 0 {
				promised++
			}
			if version < w.issued[b] {
				lost++
			}
			w.found[b], w.issued[b] = version, version
		}
		w.base = w.seq
	}
	if err := unix.Fsync(int(f.Fd())); err != nil {
		return promised, lost, fmt.Errorf("fsync of what was read: %w", err)
	}
	for _, w := range l.writers {
		w.acked = w.found
	}
	return promised, lost, nil
}

// errLost: what fsync promised is not there.
var errLost = errors.New("a promise was broken")

// version is what buf says of a block; 0 for zeroes. Blocks are written as a whole, everywhere on their way.
func (w *writer) version(b int) (uint64, error) {
	version := binary.LittleEndian.Uint64(w.buf[16:])
	for at := 0; at < len(w.buf); at += 512 {
		s := w.buf[at : at+512]
		if version == 0 {
			for _, c := range s {
				if c != 0 {
					return 0, fmt.Errorf("byte %d: neither written nor zero: % x", at, s[:32])
				}
			}
			continue
		}
		if binary.LittleEndian.Uint64(s) != loadMagic || binary.LittleEndian.Uint64(s[8:]) != uint64(w.first)+uint64(b) || binary.LittleEndian.Uint64(s[16:]) != version {
			return 0, fmt.Errorf("byte %d: another block's, or version %d is torn: % x", at, version, s[:32])
		}
		for i := 24; i < len(s); i += 8 {
			if binary.LittleEndian.Uint64(s[i:]) != version*0x9e3779b97f4a7c15+uint64(i) {
				return 0, fmt.Errorf("byte %d is damaged", at+i)
			}
		}
	}
	return version, nil
}
