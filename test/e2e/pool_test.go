//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// The pool of LUNs that are there already: in the values of every installation, with vblades in it while TestStaticPool runs.
const (
	poolShelf  = "9"
	poolClass  = "aoe-shelf-9"
	poolValues = `pools=[{"shelf": 9, "slots": "0-2"}]`
)

// vblade is a target of somebody else's on the lab's storage network.
type vblade struct {
	t    *testing.T
	slot string
	file string
	cmd  *exec.Cmd
}

// vbladePort is the interface that vblades are behind.
const vbladePort = "vblades"

// storagePort connects this process's namespace with the storage network, as a host of its own.
func storagePort(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, args := range []string{
		"link add " + vbladePort + " mtu 9000 type veth peer name vblades-p mtu 9000", "link set vblades-p master san0 up", "link set " + vbladePort + " up",
	} {
		if _, err := command(ctx, "ip", strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := command(context.Background(), "ip", "link", "del", vbladePort); err != nil {
			t.Error(err)
		}
	})
}

func startVblade(t *testing.T, slot int, file string) *vblade {
	t.Helper()
	v := &vblade{t: t, slot: fmt.Sprint(slot), file: file}
	v.start()
	t.Cleanup(v.kill)
	return v
}

func (v *vblade) start() {
	v.t.Helper()
	v.cmd = exec.Command("vblade", poolShelf, v.slot, vbladePort, v.file)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("vblade: %v", err)
	}
}

func (v *vblade) kill() {
	if err := v.cmd.Process.Kill(); err != nil {
		v.t.Errorf("vblade %s.%s had ended: %v", poolShelf, v.slot, err)
	}
	_ = v.cmd.Wait() // killed, as it says
}

// blankDisk makes a file of zeroes.
func blankDisk(t *testing.T, mib int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, mib<<20)); err != nil {
		t.Fatal(err)
	}
	return file
}

// oldDisk makes an ext4 with files in it, and returns what sha256sum prints of them.
func oldDisk(ctx context.Context, t *testing.T, mib int64) (file, sums string) {
	t.Helper()
	file, dir := blankDisk(t, mib), t.TempDir()
	for i, name := range []string{"accounts", "letters/1", "letters/2"} {
		data := make([]byte, (i+1)<<20)
		_, _ = rand.Read(data) // never fails
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		sums += fmt.Sprintf("%x  /data/%s\n", sha256.Sum256(data), name)
	}
	if _, err := command(ctx, "mkfs.ext4", "-q", "-d", dir, file); err != nil {
		t.Fatal(err)
	}
	return file, strings.TrimSpace(sums)
}

const sumOld = "sha256sum /data/accounts /data/letters/1 /data/letters/2"

func fileSum(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// Three vblades, one with a file system on it, one too small, one blank, are a pool: claims, fencing, a vblade that is restarted, adoption of
// the one with data, deletion.
func TestStaticPool(t *testing.T) {
	if !onLab() {
		t.Skip("only the storage network of hack/cluster.sh is within reach")
	}
	ctx := begin(t)
	storagePort(ctx, t)
	old, sums := oldDisk(ctx, t, 48)
	untouched := fileSum(t, old)
	startVblade(t, 0, old)
	startVblade(t, 1, blankDisk(t, 16))
	blank := startVblade(t, 2, blankDisk(t, 64))

	c := claim(ctx, t, "pool", inPool("40Mi"))
	p := worker(ctx, t, "pool-1", cluster.other, c)
	v := volumeOf(ctx, t, c)
	if v.Spec.Target != "e9.2" {
		t.Fatalf("the claim has %s, want e9.2, which is blank", v.Spec.Target)
	}
	if got := c.Status.Capacity.Storage().Value(); got != 64<<20 {
		t.Errorf("the claim says that it has %d bytes, the LUN has %d", got, 64<<20)
	}
	sh(ctx, t, p, writeFile)
	want := sh(ctx, t, p, checksum)
	refused(ctx, t, "e9.0 is not blank: it has an ext2, ext3 or ext4 file system", "e9.1 has 16 MiB only", "e9.2 belongs to volume "+v.Name)

	blank.kill()
	blank.start() // and knows nothing any more
	began := time.Now()
	goesOn(ctx, t, p)
	t.Logf("two more rounds of the worker were done %v after vblade was killed and started", time.Since(began).Round(time.Second))
	remove(ctx, t, p)

	second := pod(ctx, t, "pool-2", cluster.storage, c)
	keptOut(ctx, t, cluster.other, "e9.2")
	if got := sh(ctx, t, second, checksum); got != want {
		t.Errorf("the pod on %s reads %s, written was %s", cluster.storage, got, want)
	}
	remove(ctx, t, second)

	if got := fileSum(t, old); got != untouched {
		t.Error("the refused LUN has changed")
	}
	adopted := adopt(ctx, t, "e9.0", "pool-old")
	if got := fileSum(t, old); got != untouched {
		t.Error("adopting has changed the LUN")
	}
	third := pod(ctx, t, "pool-3", cluster.other, adopted)
	if got := sh(ctx, t, third, sumOld); got != sums {
		t.Errorf("the pod on the adopted LUN reads\n%s\nthere was\n%s", got, sums)
	}
	remove(ctx, t, third)

	const adoptedVolume = "adopted-e9-0"
	if _, err := command(ctx, "kubectl", "patch", "pv", adoptedVolume, "--patch", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`); err != nil {
		t.Fatal(err)
	}
	remove(ctx, t, c)
	remove(ctx, t, adopted)
	for name, file := range map[string]string{v.Name: blank.file, adoptedVolume: old} {
		eventually(ctx, t, podLimit, "the LUN of "+name+" is free", func() error { return absent(ctx, "intent", name, &v1alpha1.AoEVolume{}) })
		if b, err := os.ReadFile(file); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("data are left on the LUN of the deleted volume %s: %v", name, err)
		}
	}
}

// inPool makes a claim one of the pool's.
func inPool(size string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		name := poolClass
		c.Spec.StorageClassName = &name
		c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity(size)
	}
}

// refused makes a second claim, which stays Pending, with an Event that gives all the reasons.
func refused(ctx context.Context, t *testing.T, reasons ...string) {
	t.Helper()
	more := claim(ctx, t, "pool-more", inPool("40Mi"))
	eventually(ctx, t, reportLimit, "an Event says of each LUN why not", func() error {
		return hasEvent(ctx, more, "ProvisioningFailed", reasons...)
	})
	out, err := command(ctx, "kubectl", "get", "events", "--namespace", cluster.namespace, "--field-selector", "reason=ProvisioningFailed,involvedObject.name=pool-more",
		"--output=jsonpath={.items[-1:].message}")
	t.Logf("the second claim's Event: %s %v", out, err)
	if err := cluster.Get(ctx, client.ObjectKeyFromObject(more), more); err != nil || more.Status.Phase != corev1.ClaimPending {
		t.Errorf("the second claim is %s, want Pending: %v", more.Status.Phase, err)
	}
	remove(ctx, t, more)
}

// keptOut writes to a LUN from a node that it was taken off, past everything but the target itself.
func keptOut(ctx context.Context, t *testing.T, node, target string) {
	t.Helper()
	out, err := command(ctx, "kubectl", "exec", "--namespace", release, driverPod(ctx, t, "initiator", node), "--",
		"/aoe-csi", "bench", target, "--interface=eth1", "--rw=write", "--time=2s")
	if err == nil || !strings.Contains(out, "reserved") {
		t.Errorf("writing to %s from %s: %v, want it refused because it is reserved\n%s", target, node, err, out)
	}
	t.Logf("writing to %s from %s: %s", target, node, strings.TrimSpace(out))
}

// adopt makes a LUN the claim's volume, as docs/existing-storage.md says.
func adopt(ctx context.Context, t *testing.T, target, name string) *corev1.PersistentVolumeClaim {
	t.Helper()
	cmd := exec.CommandContext(ctx, "kubectl", "exec", "--namespace", release, "deploy/"+release+"-controller", "--container=controller", "--",
		"/aoe-csi", "adopt", target, "--shelf-service="+release+"/"+release+"-pools", "--tls-secret-namespace="+release, "--claim="+cluster.namespace+"/"+name)
	var why bytes.Buffer
	cmd.Stderr = &why
	pv, err := cmd.Output()
	if err != nil {
		t.Fatalf("adopt: %v\n%s", err, why.String())
	}
	apply := exec.CommandContext(ctx, "kubectl", "apply", "--filename=-")
	apply.Stdin = bytes.NewReader(pv)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
	volume := "adopted-" + strings.ReplaceAll(target, ".", "-")
	none := ""
	c := claim(ctx, t, name, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.StorageClassName, c.Spec.VolumeName = &none, volume
		c.Spec.Resources.Requests[corev1.ResourceStorage] = quantity("40Mi")
	})
	eventually(ctx, t, reportLimit, "the claim has the adopted volume", func() error {
		if err := cluster.Get(ctx, client.ObjectKeyFromObject(c), c); err != nil {
			return err
		}
		if c.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("it is %s", c.Status.Phase)
		}
		return nil
	})
	return c
}
