package initiator

import (
	"context"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// mirror is a link to a target in the same thread: what it costs is the loop's alone.
type mirror struct {
	*loop
	fd      int
	answers [256][9014]byte
	lengths [256]int
	first   int
	n       int
	event   [8]byte
}

func (m *mirror) Name() string { return "mirror" }
func (m *mirror) MAC() [6]byte { return ourMAC }
func (m *mirror) MTU() int     { return 9000 }
func (m *mirror) FD() int      { return m.fd }
func (m *mirror) Close() error { return unix.Close(m.fd) }

func (m *mirror) Send(frames []*pool.Frame) (int, error) {
	for _, f := range frames {
		i := (m.first + m.n) % len(m.answers)
		m.lengths[i] = copy(m.answers[i][:], m.reply(aoe.Frame(f.Bytes())))
		m.n++
	}
	m.event = [8]byte{1}
	_, err := unix.Write(m.fd, m.event[:])
	return len(frames), err
}

// Return implements link.Link: the frames are copies.
func (*mirror) Return() {}

func (m *mirror) Receive(dst [][]byte) (int, error) {
	if m.n == 0 {
		_, _ = unix.Read(m.fd, m.event[:])
	}
	n := 0
	for ; n < len(dst) && m.n > 0; n++ {
		dst[n] = m.answers[m.first][:m.lengths[m.first]]
		m.first = (m.first + 1) % len(m.answers)
		m.n--
	}
	return n, nil
}

// again submits the same request until there have been enough.
type again struct {
	d    *Device
	left int
	done chan struct{}
}

func (a *again) Complete(r *Request) {
	if a.left--; a.left == 0 || r.Err != nil {
		close(a.done)
		return
	}
	a.d.Submit(r)
}

// TestLoopAllocatesNothing: turns of the loop with requests in them.
func TestLoopAllocatesNothing(t *testing.T) {
	open := func(string, uint8) (link.Link, link.Link, error) {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		return &mirror{loop: &loop{t: t}, fd: fd}, nil, err
	}
	shard, err := NewShard(ShardConfig{Interfaces: []string{"eth0"}, Open: open})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := shard.Close(); err != nil {
			t.Error(err)
		}
	}()
	d, err := shard.Attach(within(t, 10*time.Second), DeviceConfig{Addr: testAddr})
	if err != nil {
		t.Fatal(err)
	}
	round := func(n int) {
		a := &again{d: d, left: n, done: make(chan struct{})}
		r := &Request{Op: OpWrite, Sectors: 64, Data: make([]byte, 64*512), Done: a}
		if err := shard.Do(context.Background(), func() { d.Submit(r) }); err != nil {
			t.Fatal(err)
		}
		<-a.done
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	round(1000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const requests = 5000
	round(requests)
	runtime.ReadMemStats(&after)
	// Beside the loop, the test and the runtime allocate a little.
	if n := after.Mallocs - before.Mallocs; n > requests/10 {
		t.Errorf("%d allocations in %d requests", n, requests)
	}
}
