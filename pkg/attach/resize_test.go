package attach

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// growLUN makes the slot's LUN larger on the shelf.
func (b *bench) growLUN(slot uint8, bytes int64) {
	b.t.Helper()
	if _, err := b.luns.Grow(slot, options(slot).Generation, bytes); err != nil {
		b.t.Fatal(err)
	}
}

// sizes are what API, record and kernel say about the slot's device.
func (b *bench) sizes(slot uint8) string {
	b.t.Helper()
	o := options(slot)
	s, err := b.m.Status(o.VolumeID)
	if err != nil {
		b.t.Fatal(err)
	}
	rec, err := b.m.records.read(b.m.records.path(o.VolumeID))
	if err != nil {
		b.t.Fatal(err)
	}
	return fmt.Sprint(s.SizeBytes, rec.Device.Params.SizeBytes, b.kernel.disk(deviceID(b.m.id.String(), o)).params.SizeBytes)
}

func allAre(bytes uint64) string { return fmt.Sprint(bytes, bytes, bytes) }

func TestResizeInUse(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	ctx := t.Context()
	if errno := b.queue(1).io(t, blockdev.OpWrite, lunBytes, make([]byte, 4096)); errno == 0 {
		t.Error("a write behind the end succeeded")
	}
	b.growLUN(1, 3*lunBytes)
	for _, wanted := range []uint64{2 * lunBytes, 3 * lunBytes, 1, 0} { // never smaller than the target is; again; smaller; whatever it is
		s, err := b.m.Resize(ctx, "e7.1", wanted)
		if err != nil || s.SizeBytes != 3*lunBytes || s.State != "live" {
			t.Fatalf("resize to %d: %d bytes, %v", wanted, s.SizeBytes, err)
		}
	}
	if got := b.sizes(1); got != allAre(3*lunBytes) {
		t.Errorf("sizes: %s", got)
	}
	if errno := b.queue(1).io(t, blockdev.OpWrite, 3*lunBytes-4096, make([]byte, 4096)); errno != 0 {
		t.Errorf("write at the new end: %v", errno)
	}
	if _, err := b.m.Resize(ctx, "e7.1", 3*lunBytes+1); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "says that it has 3145728 bytes") {
		t.Errorf("more than the target has: %v", err)
	}
	b.stop()
	b.start()
	b.eventually("recovery", func() bool { return len(b.m.List()) == 1 && b.m.List()[0].State == "live" })
	if got := b.sizes(1); got != allAre(3*lunBytes) {
		t.Errorf("sizes after a restart: %s", got)
	}
	for id, want := range map[string]error{"": ErrInvalid, "e7.2": ErrNotAttached} {
		if _, err := b.m.Resize(ctx, id, 0); !errors.Is(err, want) {
			t.Errorf("resize %q: %v, want %v", id, err, want)
		}
	}
}

// A kernel that cannot, does not, or hangs: the error says so, nothing is believed that was not seen, and a later try, or a new
// attachment, has the size.
func TestResizeThatTheKernelDoesNotDo(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*fakeKernel)
		want error
		text string
	}{
		{"cannot", func(k *fakeKernel) { k.resize = fmt.Errorf("linux 6.12: %w", blockdev.ErrCannotGrow) }, blockdev.ErrCannotGrow, "restart the pod"},
		{"fails", func(k *fakeKernel) { k.resize = errFake }, errFake, ""},
		{"does nothing", func(k *fakeKernel) { k.ignore = true }, nil, "after it was made 2097152"},
		{"hangs", func(k *fakeKernel) { k.hang = true }, blockdev.ErrHung, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.attach(1)
			b.growLUN(1, 2*lunBytes)
			b.kernel.set(func() { tt.set(b.kernel) })
			_, err := b.m.Resize(t.Context(), "e7.1", 2*lunBytes)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("resize: %v, want %v", err, tt.want)
			}
			if got := b.sizes(1); got != allAre(lunBytes) {
				t.Errorf("sizes: %s", got)
			}
			if errno := b.queue(1).io(t, blockdev.OpWrite, 0, make([]byte, 4096)); errno != 0 {
				t.Errorf("write: %v", errno)
			}
			b.kernel.set(func() { b.kernel.resize, b.kernel.ignore, b.kernel.hang = nil, false, false })
			if errors.Is(tt.want, blockdev.ErrCannotGrow) {
				if err := b.m.Detach(t.Context(), "e7.1", false, 0); err != nil {
					t.Fatal(err)
				}
				b.attach(1)
			} else if _, err := b.m.Resize(t.Context(), "e7.1", 2*lunBytes); err != nil {
				t.Errorf("the next try: %v", err)
			}
			if got := b.sizes(1); got != allAre(2*lunBytes) {
				t.Errorf("sizes in the end: %s", got)
			}
		})
	}
}

// While the target is away, or a request is stuck, the kernel is not asked: it would wait with all that belongs to the driver.
func TestResizeAsksTheTargetFirst(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.growLUN(1, 2*lunBytes)
	b.kernel.set(func() { b.kernel.resize = errors.New("the kernel was asked") })
	refused := func(text string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.m.Resize(ctx, "e7.1", 2*lunBytes); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), text) {
			t.Errorf("resize: %v, want ErrNotNow with %q", err, text)
		}
	}
	a := b.m.get("e7.1")
	pretend := func(serial uint64) { // a request that the target never answers
		if err := a.dev.Shard().Do(t.Context(), func() { a.pump.submitted++; a.pump.serials[fakeDepth-1] = serial }); err != nil {
			t.Fatal(err)
		}
	}
	pretend(1)
	refused("wait for an answer")
	pretend(0)
	b.stopTarget()
	refused("does not say its size")
	if got := b.sizes(1); got != allAre(lunBytes) {
		t.Errorf("sizes: %s", got)
	}
	// A growth that nobody can finish holds up no detach.
	if err := b.m.Detach(t.Context(), "e7.1", true, 0); err != nil {
		t.Errorf("detach: %v", err)
	}
}

// A growth that hangs in the kernel holds up nobody: another volume is attached meanwhile, and this one's detach ends, with the time
// that it waited for the growth counted.
func TestDetachEndsWhileAGrowthHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attach(1)
	b.growLUN(1, 2*lunBytes)
	hung := make(chan struct{})
	b.kernel.set(func() { b.kernel.hang, b.kernel.hung = true, hung })
	resized := make(chan error, 1)
	go func() {
		_, err := b.m.Resize(context.Background(), "e7.1", 0)
		resized <- err
	}()
	<-hung
	disk := b.kernel.disk(deviceID(b.m.id.String(), options(1)))
	b.kernel.set(func() { disk.busy = true }) // requests are out, and stay so
	detached := make(chan error, 1)
	go func() { detached <- b.m.Detach(context.Background(), "e7.1", false, resizeTimeout) }()
	b.attach(2)
	select {
	case err := <-detached:
		t.Errorf("detached while the growth had the volume: %v", err)
	case err := <-resized:
		t.Errorf("resize ended before another volume was attached: %v", err)
	default:
	}
	if err := <-resized; !errors.Is(err, blockdev.ErrHung) {
		t.Errorf("resize: %v", err)
	}
	start := time.Now()
	if err := <-detached; err != nil {
		t.Errorf("detach: %v", err)
	}
	if took := time.Since(start); took >= resizeTimeout {
		t.Errorf("after the growth the detach took another %v: the wait for it did not count", took)
	}
}

// New requests do not make the wait for the old ones longer.
func TestSettleWaitsForOldRequestsOnly(t *testing.T) {
	p := &pump{serials: make([]uint64, 4)}
	for _, tt := range []struct {
		serials []uint64
		want    uint64
	}{
		{[]uint64{0, 0, 0, 0}, 0}, {[]uint64{0, 9, 0, 7}, 7}, {[]uint64{3, 9, 0, 7}, 3},
	} {
		copy(p.serials, tt.serials)
		if got := p.oldest(); got != tt.want {
			t.Errorf("oldest of %v is %d, want %d", tt.serials, got, tt.want)
		}
	}
}

func TestResizeCodes(t *testing.T) {
	b := newBench(t)
	client := b.serve()
	ctx := t.Context()
	if _, err := client.Attach(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	resize := func(wanted uint64) codes.Code {
		_, err := client.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: "e7.1", WantedBytes: wanted})
		return status.Code(err)
	}
	if got := resize(2 * lunBytes); got != codes.Unavailable {
		t.Errorf("before the target has grown: %s", got)
	}
	b.growLUN(1, 2*lunBytes)
	b.kernel.set(func() { b.kernel.resize = blockdev.ErrCannotGrow })
	if got := resize(2 * lunBytes); got != codes.FailedPrecondition {
		t.Errorf("a kernel that cannot: %s", got)
	}
	b.kernel.set(func() { b.kernel.resize = nil })
	a, err := client.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: "e7.1", WantedBytes: 2 * lunBytes})
	if err != nil || a.GetSizeBytes() != 2*lunBytes {
		t.Errorf("%v, %v", a, err)
	}
	_, err = client.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: "e7.2"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("not attached: %v", err)
	}
	if _, err = client.Resize(ctx, &initiatorv1.ResizeRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no volume: %v", err)
	}
}
