package brief_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/brief"
)

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return p[0], p[1]
}

func TestEpollWait(t *testing.T) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	r, w := pipe(t)
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, r, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r)}); err != nil {
		t.Fatal(err)
	}
	var events [4]unix.EpollEvent
	if n, errno := brief.EpollWait(epoll, events[:], 1); n != 0 || errno != 0 {
		t.Fatalf("nothing is there: %d, %v", n, errno)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, errno := brief.EpollWait(epoll, events[:], 1); n != 1 || errno != 0 || events[0].Fd != int32(r) {
		t.Fatalf("a byte is there: %d, %v, %+v", n, errno, events[0])
	}
	if _, errno := brief.EpollWait(-1, events[:], 1); errno != unix.EBADF {
		t.Errorf("no descriptor: %v", errno)
	}
}

func TestPoll(t *testing.T) {
	r, w := pipe(t)
	fds := []unix.PollFd{{Fd: int32(r), Events: unix.POLLIN}}
	if n, errno := brief.Poll(fds, 1); n != 0 || errno != 0 {
		t.Fatalf("nothing is there: %d, %v", n, errno)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, errno := brief.Poll(fds, 1); n != 1 || errno != 0 || fds[0].Revents != unix.POLLIN {
		t.Fatalf("a byte is there: %d, %v, %+v", n, errno, fds)
	}
}

// TestCollectorGoesOn: a loop that does nothing but wait briefly holds the collector up for no longer than its wait.
func TestCollectorGoesOn(t *testing.T) {
	r, _ := pipe(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		runtime.LockOSThread()
		fds := []unix.PollFd{{Fd: int32(r), Events: unix.POLLIN}}
		for {
			select {
			case <-stop:
				return
			default:
				brief.Poll(fds, brief.Wait)
			}
		}
	}()
	const collections = 20
	began := time.Now()
	for range collections {
		runtime.GC()
	}
	took := time.Since(began)
	close(stop)
	<-stopped
	// A collection stops the world twice.
	if most := collections * (2*brief.Wait*time.Millisecond + 50*time.Millisecond); took > most {
		t.Errorf("%d collections took %v, more than %v", collections, took, most)
	}
}

func TestFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if n, err := brief.Pwrite(fd, []byte("hello"), 3); n != 5 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	b := make([]byte, 9)
	if n, err := brief.Pread(fd, b, 3); n != 5 || err != nil || string(b[:5]) != "hello" {
		t.Errorf("read: %d, %v, %q", n, err, b)
	}
	if _, err := brief.Pread(-1, b, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("read of no descriptor: %v", err)
	}
	if _, err := brief.Pwrite(-1, b, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("write to no descriptor: %v", err)
	}
}
