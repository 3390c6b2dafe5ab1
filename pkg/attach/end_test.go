package attach

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// TestEnd: when the machine goes down no device is left, whether its target answers or not, and nothing waits for ever.
func TestEnd(t *testing.T) {
	b := newBench(t)
	b.attach(0)
	b.attach(1)
	data := make([]byte, 4096)
	if errno := b.queue(0).io(t, blockdev.OpWrite, 0, data); errno != 0 {
		t.Fatal(errno)
	}
	b.stopTarget()
	pending := b.queue(1).do(blockdev.OpWrite, 0, data)
	disk := b.kernel.disk(deviceID(b.m.id.String(), options(1)))
	b.kernel.set(func() { disk.busy = true })
	const limit = 3 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	begin := time.Now()
	if err := b.m.End(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > limit+lastTry+closeTimeout+time.Second {
		t.Errorf("took %v", took)
	}
	if errno := await(t, pending); errno != syscall.EIO {
		t.Errorf("pending write ended with %v", errno)
	}
	b.kernel.set(func() {
		if len(b.kernel.devices) != 0 {
			t.Errorf("%d devices left", len(b.kernel.devices))
		}
	})
	if records := b.records(); len(records) != 0 {
		t.Errorf("records left: %v", records)
	}
}

// TestEndTooLate: a device is removed even if there is no time left for it.
func TestEndTooLate(t *testing.T) {
	b := newBench(t)
	b.attach(0)
	b.stopTarget()
	pending := b.queue(0).do(blockdev.OpWrite, 0, make([]byte, 4096))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.m.End(ctx); err != nil {
		t.Error(err)
	}
	if errno := await(t, pending); errno != syscall.EIO {
		t.Errorf("pending write ended with %v", errno)
	}
	b.kernel.set(func() {
		if len(b.kernel.devices) != 0 {
			t.Errorf("%d devices left", len(b.kernel.devices))
		}
	})
}
