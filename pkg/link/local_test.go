package link

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

var initiatorMAC = [6]byte{0x02, 0, 0, 0, 0, 0x11}

// frames makes one frame of each length, filled with its number, from a pool that outlives them.
func frames(t testing.TB, lengths ...int) []*pool.Frame {
	t.Helper()
	p, err := pool.New(pool.Config{FrameSize: LocalMTU + 100, Initial: len(lengths)})
	if err != nil {
		t.Fatal(err)
	}
	var out []*pool.Frame
	for i, n := range lengths {
		f := p.Get()
		f.SetLen(n)
		for j := range f.Bytes() {
			f.Bytes()[j] = byte(i + 1)
		}
		out = append(out, f)
	}
	t.Cleanup(func() {
		for _, f := range out {
			if f.Shared() {
				t.Errorf("frame %d still held by a link that copies", f.ID())
			}
			f.Release()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return out
}

// pair is a dialled link and the target's end of it.
func pair(t testing.TB) (initiator, target *Local) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shelf-7.sock")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, l.Close)
	if initiator, err = DialLocal(path, initiatorMAC); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, initiator.Close)
	if target, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, target.Close)
	return initiator, target
}

func closeAtEnd(t testing.TB, closer func() error) {
	t.Cleanup(func() {
		for range 2 { // idempotent
			if err := closer(); err != nil {
				t.Error(err)
			}
		}
	})
}

// receiveAll reads until nothing is left, and copies.
func receiveAll(t testing.TB, l Link) [][]byte {
	t.Helper()
	var all [][]byte
	dst := make([][]byte, 7)
	for {
		n, err := l.Receive(dst)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		for _, b := range dst[:n] {
			all = append(all, bytes.Clone(b))
		}
	}
}

func TestLocalCarriesFramesBothWays(t *testing.T) {
	initiator, target := pair(t)
	if initiator.MAC() != initiatorMAC || target.MAC() != LocalTargetMAC || initiator.Name() != "local" || target.MTU() != 65535 {
		t.Errorf("%v %v %s %d", initiator.MAC(), target.MAC(), initiator.Name(), target.MTU())
	}
	sent := frames(t, 24, 36, 60, 1060, 8740, 36+127*512, LocalMTU+14)
	for _, way := range []struct{ from, to Link }{{initiator, target}, {target, initiator}} {
		if n, err := way.from.Send(sent); n != len(sent) || err != nil {
			t.Fatalf("sent %d of %d: %v", n, len(sent), err)
		}
		got := receiveAll(t, way.to)
		if len(got) != len(sent) {
			t.Fatalf("received %d of %d", len(got), len(sent))
		}
		for i, f := range sent {
			if !bytes.Equal(got[i], f.Bytes()) {
				t.Errorf("frame %d of %d bytes came as %d bytes", i, len(f.Bytes()), len(got[i]))
			}
		}
	}
}

func TestLocalIsFullNotBlocked(t *testing.T) {
	initiator, target := pair(t)
	f := frames(t, 65000)
	taken := 0
	for {
		n, err := initiator.Send(f)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		taken++
	}
	if taken < 64 {
		t.Errorf("full after %d frames, a window is 64", taken)
	}
	if got := receiveAll(t, target); len(got) != taken {
		t.Errorf("received %d of %d", len(got), taken)
	}
	if n, err := initiator.Send(f); n != 1 || err != nil {
		t.Errorf("sent %d after it was emptied: %v", n, err)
	}
}

func TestLocalRefusesLongFrames(t *testing.T) {
	initiator, target := pair(t)
	n, err := initiator.Send(frames(t, 60, LocalMTU+15, 60))
	if n != 1 || !errors.Is(err, ErrTooLong) {
		t.Errorf("sent %d: %v", n, err)
	}
	if got := receiveAll(t, target); len(got) != 1 {
		t.Errorf("received %d", len(got))
	}
}

func TestLocalPeerGone(t *testing.T) {
	initiator, target := pair(t)
	f := frames(t, 60)
	if n, err := target.Send(f); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	dst := make([][]byte, 4)
	if n, err := initiator.Receive(dst); n != 1 || err != nil {
		t.Errorf("what was sent before: %d, %v", n, err)
	}
	if n, err := initiator.Receive(dst); n != 0 || !errors.Is(err, ErrDown) {
		t.Errorf("receive: %d, %v", n, err)
	}
	if n, err := initiator.Send(f); n != 0 || !errors.Is(err, ErrDown) {
		t.Errorf("send: %d, %v", n, err)
	}
}

func TestAcceptDoesNotWait(t *testing.T) {
	l, err := ListenLocal(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, l.Close)
	if _, err := l.Accept(); !errors.Is(err, ErrNobody) {
		t.Errorf("accept: %v", err)
	}
}

func TestDialNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := DialLocal(filepath.Join(dir, "none"), initiatorMAC); !errors.Is(err, ErrDown) {
		t.Errorf("no socket: %v", err)
	}
	stale := filepath.Join(dir, "stale")
	leaveStale(t, stale)
	if _, err := DialLocal(stale, initiatorMAC); !errors.Is(err, ErrDown) {
		t.Errorf("stale socket: %v", err)
	}
}

// leaveStale makes a socket file as a killed listener leaves it.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	fd, err := localSocket()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

func TestListenReplacesOnlyTheDead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "shelf-7.sock")
	leaveStale(t, path)
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := ListenLocal(path); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a listener: %v", err)
	}
	if c, err := DialLocal(path, initiatorMAC); err != nil {
		t.Errorf("the first listener is gone: %v", err)
	} else if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after close: %v", err)
	}

	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenLocal(path); err == nil {
		t.Error("listened over a file")
	}
	if b, err := os.ReadFile(path); string(b) != "data" {
		t.Errorf("the file: %q, %v", b, err)
	}
}

func TestListenBesideForeignListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := localSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	for range 3 { // also with its backlog full
		if _, err := ListenLocal(path); !errors.Is(err, ErrInUse) {
			t.Errorf("listen: %v", err)
		}
	}
}

func TestLocalAllocatesNothing(t *testing.T) {
	initiator, target := pair(t)
	batch := frames(t, 60, 1060, 8740, 60)
	dst := make([][]byte, 8)
	n := testing.AllocsPerRun(200, func() {
		if n, err := initiator.Send(batch); n != len(batch) || err != nil {
			t.Fatal(n, err)
		}
		if n, err := target.Receive(dst); n != len(batch) || err != nil {
			t.Fatal(n, err)
		}
		if n, err := target.Receive(dst); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

func BenchmarkLocal(b *testing.B) {
	for _, size := range []int{60, 4132, 65060} {
		b.Run(sizeName(size), func(b *testing.B) {
			initiator, target := pair(b)
			batch := frames(b, size, size, size, size, size, size, size, size)
			dst := make([][]byte, len(batch))
			b.ReportAllocs()
			b.SetBytes(int64(size * len(batch)))
			for b.Loop() {
				if n, err := initiator.Send(batch); n != len(batch) || err != nil {
					b.Fatal(n, err)
				}
				if n, err := target.Receive(dst); n != len(batch) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}
