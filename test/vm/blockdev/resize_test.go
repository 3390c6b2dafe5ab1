//go:build vm

package blockdev

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev/nbd"
)

// A real kernel that is asked to grow an NBD device while a request is unanswered hangs, and refuses all other control calls. The call is
// given up in time, the device still answers questions, and when the request ends so does the growth: it is noted, and devices can be made
// and removed again.
func TestNBDResizeWithAStuckRequest(t *testing.T) {
	f := nbd.New()
	d := &disk{mem: make([]byte, 2*size)}
	dev, s := start(t, f, d, params("stuck@1"))
	d.setMute(true)
	read := make(chan error, 1)
	go func() {
		fd, err := unix.Open(dev.Path(), unix.O_RDONLY|unix.O_DIRECT, 0)
		if err == nil {
			buffer, mapErr := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err = mapErr; err == nil {
				_, err = unix.Pread(fd, buffer, 0)
			}
			err = errors.Join(err, unix.Close(fd))
		}
		read <- err
	}()
	for idle := true; idle; time.Sleep(10 * time.Millisecond) {
		var err error
		if idle, err = dev.Idle(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	begin := time.Now()
	if err := dev.Resize(ctx, 2*size); !errors.Is(err, blockdev.ErrHung) {
		t.Fatalf("resize: %v, want ErrHung", err)
	}
	t.Logf("figure: a growth that hangs is given up after %v", time.Since(begin).Round(time.Millisecond))
	if got := dev.State().Params.SizeBytes; got != size {
		t.Errorf("%d bytes before the kernel was done", got)
	}
	if err := f.Probe(context.Background()); !errors.Is(err, blockdev.ErrHung) {
		t.Errorf("probe while a call hangs: %v", err)
	}
	d.setMute(false)
	s.nudge()
	if err := <-read; err != nil {
		t.Errorf("the request that was stuck: %v", err)
	}
	for limit := time.Now().Add(30 * time.Second); dev.State().Params.SizeBytes != 2*size; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the growth did not end with the request")
		}
	}
	file, err := os.Open(dev.Path())
	if err != nil {
		t.Fatal(err)
	}
	if end, err := file.Seek(0, 2); err != nil || end != 2*size {
		t.Errorf("size after growth: %d, %v", end, err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	start(t, f, &disk{mem: make([]byte, size)}, params("other@1"))
}
