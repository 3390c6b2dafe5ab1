//go:build vm

package powercut

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// blockSize is what a disk writes as a whole.
const blockSize = 4096

// What NBD says on the wire.
const (
	nbdRequestMagic = 0x25609513
	nbdReplyMagic   = 0x67446698
	nbdRead         = 0
	nbdWrite        = 1
	nbdDisconnect   = 2
	nbdFlush        = 3
	nbdFUA          = 1 // of the command's flags
	nbdEIO          = 5
)

type block = [blockSize]byte

// disk is an NBD server with a volatile cache: what was not flushed when the power is cut is forgotten, but for what it happened to have written
// already. It keeps the medium between connections.
type disk struct {
	size int64

	mu       sync.Mutex
	medium   map[int64]*block // what survives
	cache    map[int64]*block // newer, in memory only
	frozen   bool             // the power is gone: nothing is done and nothing answered any more
	freezeIn int              // flushes until then; 0: it is not decided
	conn     net.Conn
	flushes  int
	forgot   int               // blocks
	spoil    func([]byte) bool // fails the write that it says yes to
	spoiled  int
	protocol error
}

func newDisk(size int64) *disk {
	return &disk{size: size, medium: map[int64]*block{}, cache: map[int64]*block{}}
}

// serve answers requests until the connection ends, one after the other: a flush covers all that was answered before.
func (d *disk) serve(conn net.Conn) {
	d.mu.Lock()
	d.conn, d.frozen, d.freezeIn = conn, false, 0
	d.mu.Unlock()
	header := make([]byte, 28)
	buf := make([]byte, 16+(32<<20))
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return // cut, or disconnected
		}
		flags, command := binary.BigEndian.Uint16(header[4:]), binary.BigEndian.Uint16(header[6:])
		off, n := int64(binary.BigEndian.Uint64(header[16:])), int64(binary.BigEndian.Uint32(header[24:]))
		if command == nbdDisconnect {
			return
		}
		if binary.BigEndian.Uint32(header) != nbdRequestMagic || off%blockSize != 0 || n%blockSize != 0 || off+n > d.size || 16+n > int64(len(buf)) {
			d.fail(fmt.Errorf("request % x", header))
			return
		}
		reply := buf[:16]
		if command == nbdRead {
			reply = buf[:16+n]
		}
		data := buf[16 : 16+n]
		if command == nbdWrite {
			if _, err := io.ReadFull(conn, data); err != nil {
				return
			}
		}
		code, ok := d.do(command, flags, off, data)
		if !ok {
			continue // without power there is no answer
		}
		binary.BigEndian.PutUint32(reply, nbdReplyMagic)
		binary.BigEndian.PutUint32(reply[4:], code)
		copy(reply[8:16], header[8:16])
		if code != 0 {
			reply = reply[:16]
		}
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}

// do runs one command on whole blocks; false: the power is gone.
func (d *disk) do(command, flags uint16, off int64, data []byte) (code uint32, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen {
		return 0, false
	}
	switch command {
	case nbdRead:
		for at := int64(0); at < int64(len(data)); at += blockSize {
			d.read(off+at, data[at:at+blockSize])
		}
	case nbdWrite:
		if d.spoil != nil && d.spoil(data) {
			d.spoiled++
			return nbdEIO, true
		}
		for at := int64(0); at < int64(len(data)); at += blockSize {
			b := block(data[at : at+blockSize])
			d.cache[off+at] = &b
			if flags&nbdFUA != 0 {
				d.persist(off + at)
			}
		}
	case nbdFlush:
		if d.freezeIn > 0 {
			d.freezeIn--
			if d.freezeIn == 0 {
				d.frozen = true
				return 0, false
			}
		}
		d.flushes++
		for at := range d.cache {
			d.persist(at)
		}
	default:
		d.protocol = fmt.Errorf("command %d", command)
		return nbdEIO, true
	}
	return 0, true
}

func (d *disk) read(off int64, p []byte) {
	b := d.cache[off]
	if b == nil {
		b = d.medium[off]
	}
	if b == nil {
		clear(p)
		return
	}
	copy(p, b[:])
}

func (d *disk) persist(off int64) {
	d.medium[off] = d.cache[off]
	delete(d.cache, off)
}

func (d *disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.protocol = err
	_ = d.conn.Close() // nothing is lost with it
}

// freeze is the moment of the cut: nothing becomes durable or is answered after it.
func (d *disk) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = true
}

// freezeAtFlush has that moment be the n-th flush from now on, counted from 1, which does nothing any more.
func (d *disk) freezeAtFlush(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.freezeIn = n
}

func (d *disk) isFrozen() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.frozen
}

// drop ends the connection of a frozen disk and forgets the cache, but for blocks that chance had written already: a share of keep. It says
// how many were forgotten.
func (d *disk) drop(dice *rand.Rand, keep float64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.conn.Close() // whoever waits for an answer gets an error
	lost := 0
	for off := range d.cache {
		if dice.Float64() < keep {
			d.persist(off)
			continue
		}
		delete(d.cache, off)
		lost++
	}
	d.forgot += lost
	return lost
}

// spoilNext has the next write that it says yes to fail, once.
func (d *disk) spoilNext(suits func([]byte) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spoil = func(data []byte) bool {
		if !suits(data) {
			return false
		}
		d.spoil = nil // the caller of this holds mu
		return true
	}
}

func (d *disk) counts() (flushes, forgot, spoiled int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes, d.forgot, d.spoiled, d.protocol
}
