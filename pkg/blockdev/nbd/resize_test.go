package nbd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// growing is a device of 4096 bytes that the kernel does not know of; reconfigure stands for the kernel's call.
func growing(t *testing.T, reconfigure func([]byte) error) (*Frontend, blockdev.Device) {
	t.Helper()
	f := New()
	f.sys = fakeSysfs(t, nil)
	f.reconfigure = reconfigure
	d, err := f.Create(t.Context(), blockdev.Params{ID: "x", SizeBytes: 4096, LogicalBlock: 512})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Stop(context.Background()), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return f, d
}

func TestResizeChecksTheSize(t *testing.T) {
	calls := 0
	_, d := growing(t, func([]byte) error { calls++; return nil })
	for bytes, ok := range map[uint64]bool{0: false, 512: false, 4096 + 256: false, 8192: true} {
		if err := d.Resize(t.Context(), bytes); (err == nil) != ok {
			t.Errorf("%d bytes: %v", bytes, err)
		}
	}
	if got := d.State().Params.SizeBytes; calls != 1 || got != 8192 {
		t.Errorf("%d calls, %d bytes", calls, got)
	}
}

// TestResizeThatHangs: it is given up when the context says so, the device answers meanwhile, and what the kernel does later is noted.
func TestResizeThatHangs(t *testing.T) {
	release, frozen := make(chan struct{}), make(chan struct{})
	f, d := growing(t, func([]byte) error { close(frozen); <-release; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	seen := make(chan uint64, 1)
	go func() {
		<-frozen
		seen <- d.State().Params.SizeBytes // while Resize waits
	}()
	if err := d.Resize(ctx, 8192); !errors.Is(err, blockdev.ErrHung) {
		t.Fatalf("resize: %v", err)
	}
	select {
	case got := <-seen:
		if got != 4096 {
			t.Errorf("%d bytes before the kernel said so", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("State waits for the kernel")
	}
	if err := d.Resize(t.Context(), 8192); !errors.Is(err, blockdev.ErrHung) {
		t.Errorf("another call while one hangs: %v", err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- d.Stop(context.Background()); close(stopped) }()
	select {
	case <-stopped:
		t.Error("stop did not wait for the call that hangs")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
	for limit := time.Now().Add(10 * time.Second); d.State().Params.SizeBytes != 8192 || f.control.Hangs(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("after the kernel was done: %d bytes, a call hangs: %v", d.State().Params.SizeBytes, f.control.Hangs())
		}
	}
}

// TestRecoverSeesGrowth: the process died after the kernel had grown the device, and before the record said so.
func TestRecoverSeesGrowth(t *testing.T) {
	for sectors, want := range map[string]uint64{"8": 4096, "16": 8192, "0": 4096} {
		f := New()
		f.sys = fakeSysfs(t, map[string]map[string]string{"nbd3": {"size": sectors, "pid": "17", "backend": "x"}})
		d, err := f.Recover(t.Context(), blockdev.State{Number: 3, ID: "x", Params: blockdev.Params{SizeBytes: 4096, LogicalBlock: 512}})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.State().Params.SizeBytes; got != want {
			t.Errorf("%s sectors: %d bytes, want %d", sectors, got, want)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
