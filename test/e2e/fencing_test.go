//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

const (
	fencedBytes = 512 << 10
	// writers are what keeps a node's device busy until there is a file to stop them: each writes the whole volume with the bytes of a file over and over,
	// 64 KiB at a time, so that dozens of frames are always on their way, and counts how often it has.
	writers = `for i in 1 2 3 4; do
  setsid sh -c 'n=0; until [ -e /run/fencing.stop ]; do if dd if=/run/fencing.new of=%s bs=64k oflag=direct conv=notrunc,nocreat 2>/dev/null; then n=$((n+1)); echo $n >/run/fencing.count.'$i'; else sleep 0.3; fi; done' fencing >/dev/null 2>&1 &
done`
	countWriters = "pgrep -fc '^sh -c n=0; until' || true"
	countRounds  = "cat /run/fencing.count.* 2>/dev/null || true"
	// marked makes a file of a volume's size with the byte of an octal number.
	marked = "head -c %d /dev/zero | tr '\\0' '\\%03o' >/run/fencing.new"
)

// fencedNodes is a volume that goes from one node to the other and back.
type fencedNodes struct {
	t      *testing.T
	ctx    context.Context
	volume *v1alpha1.AoEVolume
	file   string // of the LUN, on the storage node
	moves  int
	filled byte   // the volume's content, everywhere
	device string // of the node that has it
	fenced time.Duration
}

// TestFencing hands a volume from one node to the other and back, by the attachments alone, as when a node is lost and its volume is taken off by force: its programs go
// on writing as fast as they can, and its kubelet is not asked. From the moment the attachment is gone they change nothing.
func TestFencing(t *testing.T) {
	if !onLab() {
		t.Skip("only hack/cluster.sh has nodes on which devices can be written to behind Kubernetes' back")
	}
	ctx := begin(t)
	c := claim(ctx, t, "fencing", func(c *corev1.PersistentVolumeClaim) {
		mode := corev1.PersistentVolumeBlock
		c.Spec.VolumeMode = &mode
		c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity(fmt.Sprint(fencedBytes))
	})
	remove(ctx, t, pod(ctx, t, "fencing-1", cluster.other, c)) // binds it
	f := &fencedNodes{t: t, ctx: ctx, volume: volumeOf(ctx, t, c)}
	t.Cleanup(func() {
		if t.Failed() {
			f.giveUp()
		}
	})
	eventually(ctx, t, deleteLimit, "the pod's attachment is gone", f.nowhere)
	nothingAttached(ctx, t, cluster.other)
	f.file = f.lunFile()
	moves := 1
	if os.Getenv("FULL") == "1" {
		moves = 100
	}
	old, next := cluster.other, cluster.storage
	attachment := f.attach(old)
	f.fill(old)
	began := time.Now()
	for f.moves < moves {
		attachment = f.handOver(attachment, old, next)
		old, next = next, old
	}
	took := time.Since(began)
	f.detach(old)
	remove(ctx, t, attachment)
	t.Logf("figure: %d hand-overs between two nodes, each %v (%v until the old node's attachment was gone): what the old node wrote changed nothing from then on, and the new one was never cut off",
		moves, (took / time.Duration(moves)).Round(10*time.Millisecond), (f.fenced / time.Duration(moves)).Round(10*time.Millisecond))
}

// handOver takes the volume from the node old while it writes, and gives it to next. It returns next's attachment.
func (f *fencedNodes) handOver(attachment *storagev1.VolumeAttachment, old, next string) *storagev1.VolumeAttachment {
	f.t.Helper()
	f.moves++
	mark := f.mark()
	f.on(old, fmt.Sprintf("rm -f /run/fencing.*; "+marked+"; "+writers, fencedBytes, mark, f.device))
	eventually(f.ctx, f.t, reportLimit, old+" writes", func() error {
		if n := strings.Fields(f.on(old, countRounds)); len(n) < 4 {
			return fmt.Errorf("rounds of the writers: %v", n)
		}
		return nil
	})

	at := time.Now()
	remove(f.ctx, f.t, attachment)
	f.fenced += time.Since(at)
	fenced := f.content(f.filled, mark)
	rounds := f.on(old, countRounds)

	attachment = f.attach(next)
	if now := f.content(f.filled, mark); now != fenced {
		f.t.Fatalf("hand-over %d: the volume changed after %s was taken off: %s, it was %s", f.moves, old, now, fenced)
	}
	f.fill(next)
	filled := f.content(f.filled)
	later, busy, _ := strings.Cut(f.on(old, countRounds+"; echo writers:; "+countWriters+"; touch /run/fencing.stop"), "writers:")
	if strings.TrimSpace(later) != rounds {
		f.t.Fatalf("hand-over %d: writers of %s went on after it was taken off: %q, %q", f.moves, old, rounds, later)
	}
	if strings.TrimSpace(busy) != "4" {
		f.t.Fatalf("hand-over %d: %s of 4 writers of %s were still at it: this shows less than it should", f.moves, busy, old)
	}

	f.detach(old)
	eventually(f.ctx, f.t, reportLimit, "the writers end", func() error {
		if f.on(old, countWriters) != "0" {
			return errors.New("they still run")
		}
		return nil
	})
	if now := f.content(f.filled); now != filled {
		f.t.Fatalf("hand-over %d: the volume of %s changed when %s gave up: %s, it was %s", f.moves, next, old, now, filled)
	}
	if err := cluster.Get(f.ctx, client.ObjectKeyFromObject(f.volume), f.volume); err != nil {
		f.t.Fatal(err)
	}
	if a := f.volume.Status.Admitted; len(a) != 1 || a[0].Node != next || !a[0].Confirmed {
		f.t.Fatalf("hand-over %d: admitted is %+v, want %s", f.moves, a, next)
	}
	return attachment
}

// nowhere is an error while Kubernetes has the volume attached to a node.
func (f *fencedNodes) nowhere() error {
	var attachments storagev1.VolumeAttachmentList
	if err := cluster.List(f.ctx, &attachments); err != nil {
		return err
	}
	for i := range attachments.Items {
		if name := attachments.Items[i].Spec.Source.PersistentVolumeName; name != nil && *name == f.volume.Name {
			return fmt.Errorf("%s is attached to %s", f.volume.Name, attachments.Items[i].Spec.NodeName)
		}
	}
	return nil
}

// mark is a byte for the next content, never the present one's.
func (f *fencedNodes) mark() byte { return f.filled%250 + 1 }

// attach has the controller admit the node and makes the volume a device there.
func (f *fencedNodes) attach(node string) *storagev1.VolumeAttachment {
	f.t.Helper()
	a := &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{GenerateName: cluster.namespace + "-"},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: driverName, NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &f.volume.Name}},
	}
	if err := cluster.Create(f.ctx, a); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
		defer cancel()
		remove(ctx, f.t, a)
	})
	eventually(f.ctx, f.t, reportLimit, "the volume is attached to "+node, func() error {
		if err := cluster.Get(f.ctx, client.ObjectKeyFromObject(a), a); err != nil {
			return err
		}
		if !a.Status.Attached {
			return fmt.Errorf("%+v", a.Status)
		}
		return nil
	})
	var made struct{ Device string }
	f.fromJSON(f.initiator(node, "attach", f.volume.Spec.Target, "--generation="+f.volume.Spec.Generation, "--output=json"), &made)
	f.device = made.Device
	return a
}

// detach makes a node give up, as nobody else can after it was taken off.
func (f *fencedNodes) detach(node string) {
	f.t.Helper()
	f.initiator(node, "detach", f.volume.Spec.Target, "--force")
}

// giveUp ends the writers and their devices after a failure, so that the tests that follow find idle nodes. The attachments are gone by now.
func (f *fencedNodes) giveUp() {
	ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
	defer cancel()
	f.ctx = ctx
	for _, node := range []string{cluster.storage, cluster.other} {
		if out, err := lab(ctx, "node-exec", node, "touch /run/fencing.stop"); err != nil {
			f.t.Logf("%v: %s", err, out)
		}
		if _, err := f.tryInitiator(node, "detach", f.volume.Spec.Target, "--force"); err != nil {
			f.t.Log(err) // where it is not attached
		}
	}
}

// initiator runs a command of the driver on a node.
func (f *fencedNodes) initiator(node string, args ...string) string {
	f.t.Helper()
	out, err := f.tryInitiator(node, args...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fencedNodes) tryInitiator(node string, args ...string) (string, error) {
	f.t.Helper()
	return command(f.ctx, "kubectl", append([]string{"exec", "--namespace", release, driverPod(f.ctx, f.t, "initiator", node), "--", "/aoe-csi"}, args...)...)
}

// fill writes the volume from a node that has it, and reads it back there.
func (f *fencedNodes) fill(node string) {
	f.t.Helper()
	f.filled = f.mark() + 1
	f.on(node, fmt.Sprintf(marked+"; dd if=/run/fencing.new of=%[3]s bs=1M oflag=direct conv=notrunc,fsync && dd if=%[3]s bs=1M iflag=direct | cmp -n %[1]d - /run/fencing.new", fencedBytes, f.filled, f.device))
}

// on runs a script on a node.
func (f *fencedNodes) on(node, script string) string {
	f.t.Helper()
	out, err := lab(f.ctx, "node-exec", node, script)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// content is a sum of what the target has, which must be these bytes and no others.
func (f *fencedNodes) content(marks ...byte) string {
	f.t.Helper()
	set := ""
	for _, m := range marks {
		set += fmt.Sprintf("\\%03o", m)
	}
	others, sum, _ := strings.Cut(f.on(cluster.storage, fmt.Sprintf("tr -d '%s' <%[2]s | wc -c; sha256sum <%[2]s", set, f.file)), "\n")
	if others != "0" {
		f.t.Fatalf("hand-over %d: the volume has %s bytes that nobody wrote", f.moves, others)
	}
	return sum
}

// lunFile finds the volume's file on the storage node.
func (f *fencedNodes) lunFile() string {
	f.t.Helper()
	var list struct {
		Luns []struct {
			ID   struct{ Generation string }
			UUID string
		}
	}
	f.fromJSON(lunsOnShelf(f.ctx, f.t), &list)
	for _, l := range list.Luns {
		if l.ID.Generation == f.volume.Spec.Generation {
			if file := f.on(cluster.storage, "find /var/lib/aoe-csi -name "+l.UUID+".img"); file != "" {
				return file
			}
		}
	}
	f.t.Fatalf("no file of %s among %+v", f.volume.Spec.Target, list.Luns)
	return ""
}

func (f *fencedNodes) fromJSON(text string, to any) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		f.t.Fatalf("%v in %s", err, text)
	}
}
