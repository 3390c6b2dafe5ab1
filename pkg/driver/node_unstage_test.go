package driver

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// stuckMounter waits for a target that is gone, as the kernel does, until a forced detach lets its I/O fail.
type stuckMounter struct {
	memoryMounter
	entered, failed chan struct{}
	growing         chan struct{}
}

func (m *stuckMounter) Grow(string, string) error {
	close(m.growing)
	<-m.failed
	return errors.New("resize2fs: I/O error")
}

// Unmount takes the mount out of the table before it waits.
func (m *stuckMounter) Unmount(path string) error {
	m.mu.Lock()
	mounted := m.mounts[path] != 0
	delete(m.mounts, path)
	m.mu.Unlock()
	if mounted {
		<-m.failed
	}
	return nil
}

func (m *stuckMounter) FormatAndMount(device, target, fsType string, mkfsOptions, mountOptions []string) error {
	if m.entered != nil {
		close(m.entered)
		<-m.failed
		return errors.New("mkfs: I/O error")
	}
	return m.memoryMounter.FormatAndMount(device, target, fsType, mkfsOptions, mountOptions)
}

// stuckAttacher lets the mounter's I/O fail when the device is given up.
type stuckAttacher struct {
	memoryAttacher
	failed chan struct{}
}

func (a *stuckAttacher) Detach(ctx context.Context, id string, force bool) (string, error) {
	if force {
		close(a.failed)
	}
	return a.memoryAttacher.Detach(ctx, id, force)
}

func newStuckBench(t *testing.T, entered chan struct{}) (*nodeBench, *stuckAttacher, *Node) {
	failed := make(chan struct{})
	attacher := &stuckAttacher{failed: failed}
	recorder := &memoryRecorder{}
	node := NewNode(NodeConfig{ID: testNode, Attacher: attacher, Mounter: &stuckMounter{entered: entered, failed: failed}, Recorder: recorder})
	node.patience = time.Millisecond
	return &nodeBench{dir: t.TempDir(), recorder: recorder, client: csi.NewNodeClient(serveTest(t, Config{Node: node}))}, attacher, node
}

func (b *nodeBench) unstage(ctx context.Context) error {
	_, err := b.client.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: testVolume, StagingTargetPath: b.staging()})
	return err
}

// An unmount that waits for a dead target is answered with "not yet", then by the initiator's refusal, and in the end
// the device is given up.
func TestNodeUnstageComesToAnEnd(t *testing.T) {
	b, attacher, node := newStuckBench(t, nil)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	attacher.stall()
	expect(t, b.unstage(t.Context()), codes.Unavailable, b.staging())
	expect(t, b.unstage(t.Context()), codes.FailedPrecondition, "mounted")
	node.leaving.Store(testVolume, time.Now().Add(-detachTimeout))
	expect(t, b.unstage(t.Context()), codes.OK)
	if len(attacher.attached) != 0 {
		t.Errorf("left attached: %v", attacher.attached)
	}
	if want := testVolume + " IOGivenUp: node " + testNode + " detached it: I/O was failed"; !slices.Equal(b.recorder.events, []string{want}) {
		t.Errorf("told: %q, want %q", b.recorder.events, want)
	}
	if _, remembered := node.leaving.Load(testVolume); remembered {
		t.Error("the next life of the volume would be given up at once")
	}
}

// A target that answers is never given up, however long it takes.
func TestNodeUnstageWaitsForASlowTarget(t *testing.T) {
	b, attacher, node := newStuckBench(t, nil)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	attacher.busy = true
	node.leaving.Store(testVolume, time.Now().Add(-time.Hour))
	expect(t, b.unstage(t.Context()), codes.Unavailable)
	expect(t, b.unstage(t.Context()), codes.FailedPrecondition)
	close(attacher.failed) // the slow unmount is done
	attacher.busy = false
	expect(t, b.unstage(t.Context()), codes.OK)
	if len(b.recorder.events) != 0 {
		t.Errorf("told of a loss: %q", b.recorder.events)
	}
}

// An expansion that hangs does not either.
func TestNodeUnstageEndsHangingExpansion(t *testing.T) {
	b, attacher, node := newStuckBench(t, nil)
	_, err := b.client.NodeStageVolume(t.Context(), b.stageRequest())
	expect(t, err, codes.OK)
	growing := make(chan struct{})
	node.Mounter.(*stuckMounter).growing = growing
	expanded := make(chan error, 1)
	go func() {
		_, err := b.client.NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{VolumeId: testVolume, VolumePath: b.staging()})
		expanded <- err
	}()
	<-growing
	attacher.stall()
	expect(t, b.unstage(t.Context()), codes.Aborted, "expand")
	node.leaving.Store(testVolume, time.Now().Add(-detachTimeout))
	expect(t, b.unstage(t.Context()), codes.Aborted) // gives up the device
	expect(t, <-expanded, codes.Internal, "I/O error")
	expect(t, b.unstage(t.Context()), codes.OK)
}

// A stage that hangs holds the volume, but not for ever.
func TestNodeUnstageEndsHangingStage(t *testing.T) {
	entered := make(chan struct{})
	b, attacher, node := newStuckBench(t, entered)
	staged := make(chan error, 1)
	go func() {
		_, err := b.client.NodeStageVolume(context.Background(), b.stageRequest())
		staged <- err
	}()
	<-entered
	expect(t, b.unstage(t.Context()), codes.Aborted, "stage")
	node.leaving.Store(testVolume, time.Now().Add(-detachTimeout))
	expect(t, b.unstage(t.Context()), codes.Aborted) // makes progress: left alone
	attacher.stall()
	expect(t, b.unstage(t.Context()), codes.Aborted) // gives up the device
	expect(t, <-staged, codes.Internal, "I/O error")
	expect(t, b.unstage(t.Context()), codes.OK)
}
