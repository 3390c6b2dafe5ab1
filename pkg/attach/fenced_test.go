package attach

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// managedLun makes e7.5, which only admits whom it is told, and returns what lets this host in, and what takes it off and lets it in again.
func (b *bench) managedLun() (admit, readmit func()) {
	b.t.Helper()
	ctx, o := context.Background(), options(5)
	_, err := b.luns.Create(ctx, target.CreateRequest{Slot: 5, Generation: o.Generation, SizeBytes: lunBytes})
	if err != nil {
		b.t.Fatal(err)
	}
	admit = func() {
		b.t.Helper()
		// The address of who has no network card.
		if _, err := b.luns.Admit(ctx, 5, o.Generation, target.Admission{Node: "n", MACs: []aoe.MAC{{0x02, 'a', 'o', 'e', 0, 1}}}); err != nil {
			b.t.Fatal(err)
		}
	}
	return admit, func() {
		b.t.Helper()
		if _, err := b.luns.Expel(ctx, 5, o.Generation, "n"); err != nil {
			b.t.Fatal(err)
		}
		admit()
	}
}

// TestAdmittedAnew: after this host was taken off and let in again its old attachment is of no use any more, and says so; a new one is.
func TestAdmittedAnew(t *testing.T) {
	b := newBench(t)
	admit, readmit := b.managedLun()
	admit()
	b.attach(5)
	data := bytes.Repeat([]byte("aoe!"), 1024)
	if errno := b.queue(5).io(t, blockdev.OpWrite, 0, data); errno != 0 {
		t.Fatalf("write: %v", errno)
	}
	readmit()
	if errno := b.queue(5).io(t, blockdev.OpWrite, 0, make([]byte, len(data))); errno != syscall.EIO {
		t.Fatalf("write of the attachment before: %v", errno)
	}
	if _, err := b.m.Attach(context.Background(), options(5), 0); !errors.Is(err, initiator.ErrFenced) {
		t.Errorf("attached as before: %v", err)
	}
	if err := b.m.Detach(context.Background(), "e7.5", false, 0); err != nil {
		t.Fatal(err)
	}
	b.attach(5)
	got := make([]byte, len(data))
	if errno := b.queue(5).io(t, blockdev.OpRead, 0, got); errno != 0 || !bytes.Equal(got, data) {
		t.Errorf("read: %v, same data: %v", errno, bytes.Equal(got, data))
	}

	// The same while no initiator runs: the next one does not take the device over, it removes it.
	b.stop()
	readmit()
	b.start()
	b.eventually("device of the attachment before is removed", func() bool { return len(b.m.List()) == 0 && len(b.records()) == 0 })
	if d := b.kernel.disk(deviceID(b.m.id.String(), options(5))); d != nil {
		t.Error("the kernel still has its device")
	}
	b.attach(5)
	if errno := b.queue(5).io(t, blockdev.OpRead, 0, got); errno != 0 || !bytes.Equal(got, data) {
		t.Errorf("read: %v, same data: %v", errno, bytes.Equal(got, data))
	}
}
