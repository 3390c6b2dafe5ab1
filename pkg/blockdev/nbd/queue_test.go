package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// testQueue is a queue and the kernel's end of its socket, played by the test.
func testQueue(t testing.TB, depth, memory int) (*queue, int) {
	t.Helper()
	q, peer, end := openQueue(t, depth, memory)
	t.Cleanup(end)
	return q, peer
}

func openQueue(t testing.TB, depth, memory int) (q *queue, peer int, end func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	q, err = newQueue(pair[0], depth, memory)
	if err != nil {
		t.Fatal(err)
	}
	return q, pair[1], func() {
		if err := errors.Join(q.closeSocket(), q.mem.close(), unix.Close(pair[1])); err != nil {
			t.Error(err)
		}
	}
}

// encode is a request as the kernel sends it.
func encode(h header, payload []byte) []byte {
	b := make([]byte, requestLen, requestLen+len(payload))
	binary.BigEndian.PutUint32(b, requestMagic)
	binary.BigEndian.PutUint16(b[4:], h.flags)
	binary.BigEndian.PutUint16(b[6:], h.kind)
	binary.BigEndian.PutUint64(b[8:], h.cookie)
	binary.BigEndian.PutUint64(b[16:], h.offset)
	binary.BigEndian.PutUint32(b[24:], h.length)
	return append(b, payload...)
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*7 + byte(i>>8) + seed
	}
	return b
}

func write(t testing.TB, fd int, b []byte) {
	t.Helper()
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			t.Fatalf("write: %v", err)
		}
		b = b[n:]
	}
}

// readAll reads what the queue has sent so far.
func readAll(t testing.TB, fd int) []byte {
	t.Helper()
	var all []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			return all
		}
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		all = append(all, buf[:n]...)
	}
}

func poll(t testing.TB, q *queue) []*blockdev.Request {
	t.Helper()
	out, err := q.Poll(nil)
	if err != nil {
		t.Fatalf("Poll: %v", err)
	}
	return out
}

// script is a stream with every kind of request in it.
func script() (stream []byte, want []string) {
	add := func(h header, payload []byte, op blockdev.Op) {
		stream = append(stream, encode(h, payload)...)
		want = append(want, fmt.Sprint(op, h.offset, h.length, h.flags&flagFUA != 0, h.cookie, string(payload)))
	}
	add(header{kind: cmdRead, cookie: 1, offset: 4096, length: 512}, nil, blockdev.OpRead)
	add(header{kind: cmdWrite, cookie: 2, offset: 512, length: 512}, pattern(512, 2), blockdev.OpWrite)
	add(header{kind: cmdWrite, cookie: 3, offset: 0, length: 512, flags: flagFUA}, pattern(512, 3), blockdev.OpWrite)
	add(header{kind: cmdFlush, cookie: 4}, nil, blockdev.OpFlush)
	add(header{kind: cmdTrim, cookie: 5, offset: 1 << 40, length: 1 << 30}, nil, blockdev.OpTrim)
	add(header{kind: cmdWriteZeroes, cookie: 6, offset: 1 << 20, length: 1 << 20}, nil, blockdev.OpWriteZeroes)
	add(header{kind: cmdWrite, cookie: 1<<63 + 7, offset: 8192, length: 512}, pattern(512, 7), blockdev.OpWrite)
	return stream, want
}

func describe(r *blockdev.Request) string {
	data := r.Data
	if r.Op == blockdev.OpRead {
		data = nil
	}
	return fmt.Sprint(r.Op, r.Offset, r.Length, r.FUA, r.Cookie, string(data))
}

func TestParseEverySegmentation(t *testing.T) {
	stream, want := script()
	check := func(name string, pieces ...[]byte) {
		q, peer, end := openQueue(t, 16, 256<<10) // thousands of them: closed at once
		defer end()
		var got []string
		for _, piece := range pieces {
			write(t, peer, piece)
			for _, r := range poll(t, q) {
				got = append(got, describe(r))
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s: requests differ:\ngot  %.600v\nwant %.600v", name, got, want)
		}
	}
	for cut := range len(stream) + 1 {
		check(fmt.Sprintf("cut at %d", cut), stream[:cut], stream[cut:])
	}
	var single [][]byte
	for i := range stream {
		single = append(single, stream[i:i+1])
	}
	check("byte by byte", single...)
}

func TestLargeWriteGoesStraightIntoItsBuffer(t *testing.T) {
	q, peer := testQueue(t, 4, regionBytes)
	payload := pattern(1<<20, 9)
	stream := append(encode(header{kind: cmdWrite, cookie: 9, length: 1 << 20}, payload), encode(header{kind: cmdFlush, cookie: 10}, nil)...)
	var got []*blockdev.Request
	for len(stream) > 0 {
		n := min(len(stream), 50_000)
		write(t, peer, stream[:n])
		stream = stream[n:]
		got = append(got, poll(t, q)...)
	}
	if len(got) != 2 || !bytes.Equal(got[0].Data, payload) || got[1].Op != blockdev.OpFlush {
		t.Fatalf("got %d requests, or the payload differs", len(got))
	}
}

func TestRefusedRequestsAreAnsweredAndSkipped(t *testing.T) {
	const memory = 256 << 10
	tests := []struct {
		name    string
		h       header
		payload int
	}{
		{"unknown type", header{kind: 9, length: 512}, 0},
		{"read of nothing", header{kind: cmdRead}, 0},
		{"unaligned offset", header{kind: cmdRead, offset: 100, length: 512}, 0},
		{"unaligned write", header{kind: cmdWrite, length: 700}, 700},
		{"write larger than the memory", header{kind: cmdWrite, length: memory + 512}, memory + 512},
		{"read larger than the memory", header{kind: cmdRead, length: 1 << 31}, 0},
		{"trim of nothing", header{kind: cmdTrim}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, peer := testQueue(t, 4, memory)
			tt.h.cookie = 77
			stream := append(encode(tt.h, make([]byte, tt.payload)), encode(header{kind: cmdFlush, cookie: 78}, nil)...)
			var got []*blockdev.Request
			for len(stream) > 0 {
				n := min(len(stream), 30_000)
				write(t, peer, stream[:n])
				stream = stream[n:]
				got = append(got, poll(t, q)...)
			}
			if len(got) != 1 || got[0].Cookie != 78 {
				t.Fatalf("want the flush alone, got %d requests", len(got))
			}
			if more, err := q.Flush(); more || err != nil {
				t.Fatalf("Flush: %v, %v", more, err)
			}
			want := make([]byte, replyLen)
			encodeReply(want, 77, syscall.EINVAL)
			if reply := readAll(t, peer); !bytes.Equal(reply, want) {
				t.Fatalf("reply %x, want %x", reply, want)
			}
		})
	}
}

func TestEndOfStream(t *testing.T) {
	tests := []struct {
		name string
		send []byte
		shut bool
		want error
	}{
		{"peer gone", nil, true, io.EOF},
		{"peer gone within a header", []byte{0x25, 0x60}, true, io.EOF},
		{"disconnect", encode(header{kind: cmdDisconnect}, nil), false, io.EOF},
		{"garbage", make([]byte, requestLen), false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, peer := testQueue(t, 4, regionBytes)
			write(t, peer, append(encode(header{kind: cmdFlush, cookie: 1}, nil), tt.send...))
			if tt.shut {
				if err := unix.Shutdown(peer, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
			}
			got, err := q.Poll(nil)
			if tt.shut && err == nil {
				_, err = q.Poll(nil) // what was read short is followed by the end
			}
			if len(got) != 1 {
				t.Fatalf("%d requests before the end, want 1", len(got))
			}
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if _, again := q.Poll(nil); again == nil {
				t.Fatal("the end was forgotten")
			}
		})
	}
}

func TestStallsWithoutMemoryAndGoesOn(t *testing.T) {
	const memory = 256 << 10
	q, peer := testQueue(t, 8, memory)
	for cookie := range uint64(3) {
		write(t, peer, encode(header{kind: cmdRead, cookie: cookie, length: 128 << 10}, nil))
	}
	got := poll(t, q)
	if len(got) != 2 || !q.Stalled() {
		t.Fatalf("%d requests, stalled %v; want 2 and true", len(got), q.Stalled())
	}
	if again := poll(t, q); len(again) != 0 || !q.Stalled() {
		t.Fatalf("%d requests without memory", len(again))
	}
	q.Complete(got[1], 0)
	for more := true; more; {
		var err error
		if more, err = q.Flush(); err != nil {
			t.Fatal(err)
		}
		readAll(t, peer)
	}
	got = poll(t, q)
	if len(got) != 1 || got[0].Cookie != 2 || q.Stalled() {
		t.Fatalf("after memory came back: %d requests, stalled %v", len(got), q.Stalled())
	}
}

func TestStallsWithoutSlots(t *testing.T) {
	q, peer := testQueue(t, 2, regionBytes)
	for cookie := range uint64(3) {
		write(t, peer, encode(header{kind: cmdFlush, cookie: cookie}, nil))
	}
	got := poll(t, q)
	if len(got) != 2 || !q.Stalled() {
		t.Fatalf("%d requests, stalled %v", len(got), q.Stalled())
	}
	q.Complete(got[0], 0)
	if _, err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := poll(t, q); len(got) != 1 || got[0].Cookie != 2 {
		t.Fatalf("the third request did not come: %d", len(got))
	}
}

// TestRepliesInAnyOrderThroughASmallSocket checks partial writes: the reply stream must be whole whatever the kernel takes.
func TestRepliesInAnyOrderThroughASmallSocket(t *testing.T) {
	q, peer := testQueue(t, 64, regionBytes)
	if err := unix.SetsockoptInt(q.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var want []byte
	for round := range 50 {
		for i := range 40 {
			write(t, peer, encode(header{kind: cmdRead, cookie: uint64(round*100 + i), length: uint32(512 * (1 + rng.IntN(40)))}, nil))
		}
		got := poll(t, q)
		if len(got) != 40 {
			t.Fatalf("round %d: %d requests", round, len(got))
		}
		rng.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		var received []byte
		for i, r := range got {
			errno := syscall.Errno(0)
			if i%7 == 3 {
				errno = syscall.EIO
			}
			copy(r.Data, pattern(len(r.Data), byte(r.Cookie)))
			reply := make([]byte, replyLen)
			encodeReply(reply, r.Cookie, errno)
			if errno == 0 {
				reply = append(reply, r.Data...)
			}
			want = append(want, reply...)
			q.Complete(r, errno)
			if i%5 == 0 {
				if _, err := q.Flush(); err != nil {
					t.Fatal(err)
				}
				received = append(received, readAll(t, peer)...)
			}
		}
		for more := true; more; {
			var err error
			if more, err = q.Flush(); err != nil {
				t.Fatal(err)
			}
			received = append(received, readAll(t, peer)...)
		}
		if !bytes.Equal(received, want) {
			t.Fatalf("round %d: reply stream of %d bytes differs, want %d", round, len(received), len(want))
		}
		want = want[:0]
		if q.mem.free != regionBytes/pageBytes || len(q.idle) != 64 {
			t.Fatalf("round %d: leaked: %d pages free, %d slots idle", round, q.mem.free, len(q.idle))
		}
	}
}

func TestFlushAfterTheKernelIsGone(t *testing.T) {
	q, peer := testQueue(t, 4, regionBytes)
	write(t, peer, encode(header{kind: cmdRead, length: 4096}, nil))
	got := poll(t, q)
	if err := unix.Shutdown(peer, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	q.Complete(got[0], 0)
	if _, err := q.Flush(); !errors.Is(err, io.EOF) {
		t.Fatalf("Flush: %v, want EOF", err)
	}
	if q.mem.free != regionBytes/pageBytes || len(q.idle) != 4 {
		t.Fatal("the request was not freed")
	}
	if _, err := q.Poll(nil); !errors.Is(err, io.EOF) {
		t.Fatalf("Poll: %v, want EOF", err)
	}
}

func TestAnswersGoOutAfterRefuse(t *testing.T) {
	q, peer := testQueue(t, 4, regionBytes)
	write(t, peer, encode(header{kind: cmdFlush, cookie: 5}, nil))
	got := poll(t, q)
	q.refuse()
	if _, err := unix.Write(peer, encode(header{kind: cmdFlush}, nil)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the kernel can still send: %v", err)
	}
	if _, err := q.Poll(nil); !errors.Is(err, io.EOF) {
		t.Errorf("Poll: %v, want EOF", err)
	}
	q.Complete(got[0], 0)
	if _, err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if reply := readAll(t, peer); len(reply) != replyLen {
		t.Errorf("reply of %d bytes", len(reply))
	}
}

func TestNoAllocations(t *testing.T) {
	q, peer := testQueue(t, 128, regionBytes)
	stream := append(encode(header{kind: cmdRead, cookie: 1, length: 4096}, nil), encode(header{kind: cmdWrite, cookie: 2, length: 4096}, pattern(4096, 1))...)
	replies := make([]byte, 64<<10)
	var got []*blockdev.Request
	step := func() {
		write(t, peer, stream)
		var err error
		if got, err = q.Poll(got[:0]); err != nil || len(got) != 2 {
			t.Fatalf("%d requests, %v", len(got), err)
		}
		q.Complete(got[1], 0)
		q.Complete(got[0], 0)
		if _, err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(peer, replies); err != nil || n != 2*replyLen+4096 {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	step()
	if n := testing.AllocsPerRun(200, step); n != 0 {
		t.Errorf("%v allocations for two requests", n)
	}
}

func TestRegion(t *testing.T) {
	r, err := newRegion(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(r.close(), r.close()); err != nil {
			t.Error(err)
		}
	}()
	type loan struct {
		data []byte
		page int
		mark byte
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var loans []loan
	refused := 0
	for i := range 4_000 {
		if len(loans) > 0 && rng.IntN(2) == 0 {
			k := rng.IntN(len(loans))
			for j, b := range loans[k].data {
				if b != loans[k].mark {
					t.Fatalf("step %d: byte %d of a loan was overwritten", i, j)
				}
			}
			r.release(loans[k].page, len(loans[k].data))
			loans[k] = loans[len(loans)-1]
			loans = loans[:len(loans)-1]
			continue
		}
		length := 512 * (1 + rng.IntN(8<<rng.IntN(8)))
		data, page, ok := r.alloc(length)
		if !ok {
			refused++
			continue
		}
		if len(data) != length || cap(data) != length {
			t.Fatalf("loan of %d bytes is %d long, capacity %d", length, len(data), cap(data))
		}
		for j := range data {
			data[j] = byte(i)
		}
		loans = append(loans, loan{data, page, byte(i)})
	}
	if refused == 0 {
		t.Error("memory never ran out: the test does not test that")
	}
	for _, l := range loans {
		r.release(l.page, len(l.data))
	}
	if _, _, ok := r.alloc(1 << 20); !ok || r.free != 0 {
		t.Error("the whole region cannot be lent after everything came back")
	}
	r.release(0, 1<<20)
}

func FuzzPoll(f *testing.F) {
	stream, _ := script()
	f.Add(stream, uint16(100))
	f.Add(encode(header{kind: cmdWrite, length: 1<<32 - 512}, make([]byte, 600)), uint16(30))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		q, peer := testQueue(t, 4, 256<<10)
		stream = stream[:min(len(stream), 64<<10)]
		at := min(int(cut), len(stream))
		for _, piece := range [][]byte{stream[:at], stream[at:]} {
			write(t, peer, piece)
			for range 100 {
				got, err := q.Poll(nil)
				for _, r := range got {
					if r.Data != nil && len(r.Data) != int(r.Length) {
						t.Fatalf("data of %d bytes for a length of %d", len(r.Data), r.Length)
					}
					q.Complete(r, 0)
				}
				_, flushErr := q.Flush()
				readAll(t, peer)
				if err != nil || flushErr != nil {
					return
				}
				if !q.Stalled() && len(got) == 0 {
					break
				}
			}
		}
	})
}
