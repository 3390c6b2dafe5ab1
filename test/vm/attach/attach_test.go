//go:build vm

// Package attach runs the initiator with real devices: attach, use, detach, also when the target or the initiator dies.
package attach

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const size = 64 << 20

// attachment is what `stat -o json` says of one.
type attachment struct {
	VolumeID string `json:"volumeId"`
	Device   string `json:"device"`
	State    string `json:"state"`
	Message  string `json:"message"`
	Session  bool   `json:"session"`
	Flush    bool   `json:"flush"`
}

func stat(t *testing.T, i *lab.Initiator) []attachment {
	t.Helper()
	out, err := i.CLI(10*time.Second, "stat", "-o", "json")
	if err != nil {
		t.Fatalf("stat: %v\n%s", err, out)
	}
	var list struct {
		Attachments []attachment `json:"attachments"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("stat: %v\n%s", err, out)
	}
	return list.Attachments
}

// mustFail runs a command of the initiator's that has to fail with these words.
func mustFail(t *testing.T, i *lab.Initiator, words string, sub string, args ...string) {
	t.Helper()
	out, err := i.CLI(30*time.Second, sub, args...)
	if err == nil || !strings.Contains(out, words) {
		t.Errorf("%s %v: %v, %q; want a failure with %q", sub, args, err, out, words)
	}
}

func TestVblade(t *testing.T) {
	l := lab.New(t)
	target, i := l.Host("t"), l.Host("a").Initiator()
	target.Vblade(7, 3, size)
	dev := ""
	l.Eventually(20*time.Second, "vblade", func() error {
		out, err := i.CLI(20*time.Second, "discover")
		if err != nil || !strings.Contains(out, "e7.3") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	dev = i.Attach("e7.3")
	if again := i.Attach("e7.3"); again != dev {
		t.Errorf("attached again as %s, not %s", again, dev)
	}
	if list := stat(t, i); len(list) != 1 || list[0].State != "live" || list[0].Session || list[0].Flush {
		t.Errorf("stat: %+v; want one live foreign target without flush", list)
	}
	mustFail(t, i, "detach it first", "attach", "e7.3", "--generation", "abcdefghijklmnop")
	l.Run("mkfs.ext4", "-q", dev)
	dir := filepath.Join(l.Dir(), "mnt")
	l.Run("mkdir", dir)
	l.Run("mount", dev, dir)
	mustFail(t, i, "unmount it first", "detach", "e7.3")
	out, err := l.TryFor(2*time.Minute, lab.FioVerify("vblade", filepath.Join(dir, "file"), 5*time.Second, "--size=16m")[0],
		lab.FioVerify("vblade", filepath.Join(dir, "file"), 5*time.Second, "--size=16m")[1:]...)
	if err != nil {
		t.Errorf("fio: %v\n%s", err, out)
	}
	l.Run("umount", dir)
	i.Detach("e7.3")
	i.Detach("e7.3")
	if list := stat(t, i); len(list) != 0 {
		t.Errorf("after detach: %+v", list)
	}
	again := i.Attach("e7.3")
	l.Run("e2fsck", "-fn", again)
	i.Detach("e7.3")
}

func TestErrorsSayWhat(t *testing.T) {
	l := lab.New(t)
	target, i := l.Host("t").Target(7), l.Host("a").Initiator()
	target.MustLun("create", "e7.1", "--generation", "abcdefghijklmnop", "--size", "64Mi")
	target.MustLun("create", "e7.2", "--generation", "bcdefghijklmnopq", "--size", "64Mi", "--access", "open")
	mustFail(t, i, "no answer", "attach", "e7.9", "--timeout", "1s")
	mustFail(t, i, "another volume", "attach", "e7.2", "--generation", "cdefghijklmnopqr")
	mustFail(t, i, "no answer", "attach", "e7.1", "--generation", "abcdefghijklmnop", "--timeout", "2s")
	mustFail(t, i, "scsi", "attach", "e7.2", "--frontend", "scsi")
	if list := stat(t, i); len(list) != 0 {
		t.Errorf("failed attachments left %+v", list)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestManyVolumes: several at once, each with its own bytes.
func TestManyVolumes(t *testing.T) {
	l := lab.New(t)
	target, i := l.Host("t").Target(7), l.Host("a").Initiator()
	const n = 6
	data := make([][]byte, n)
	for k := range n {
		target.MustLun("create", fmt.Sprintf("e7.%d", k), "--size", "16Mi", "--access", "open")
	}
	for k := range n {
		dev := i.Attach(fmt.Sprintf("e7.%d", k))
		data[k] = make([]byte, 1<<20)
		_, _ = rand.Read(data[k]) // never fails
		f, err := os.OpenFile(dev, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data[k]); err != nil {
			t.Fatal(err)
		}
		if err := firstError(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for k := range n {
		i.Detach(fmt.Sprintf("e7.%d", k))
	}
	for k := range n {
		dev := i.Attach(fmt.Sprintf("e7.%d", n-1-k))
		got := make([]byte, 1<<20)
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		_ = f.Close() // it was only read
		if !bytes.Equal(got, data[n-1-k]) {
			t.Errorf("e7.%d has the bytes of another volume, or none", n-1-k)
		}
		i.Detach(fmt.Sprintf("e7.%d", n-1-k))
	}
}

// TestMoreThanMemory: far more is asked for at a time than the front end has memory for; nothing stops, fails or differs.
func TestMoreThanMemory(t *testing.T) {
	l := lab.New(t)
	target, i := l.Host("t").Target(7), l.Host("a").Initiator()
	target.MustLun("create", "e7.1", "--size", "128Mi", "--access", "open")
	dev := i.Attach("e7.1")
	out, err := l.TryFor(4*time.Minute, "fio", "--name=large", "--filename="+dev, "--ioengine=libaio", "--direct=1", "--rw=randwrite",
		"--bsrange=512-1m", "--blockalign=4k", "--iodepth=96", "--size=96m", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1")
	if err != nil {
		t.Errorf("fio: %v\n%s", err, out)
	}
	i.Detach("e7.1")
}

// TestDisconnectedByOthers: somebody ends our device with nbd-client; that is told, and attaching again makes it good.
func TestDisconnectedByOthers(t *testing.T) {
	l := lab.New(t)
	l.Frontend = "nbd"
	target, i := l.Host("t").Target(7), l.Host("a").Initiator()
	target.MustLun("create", "e7.1", "--size", "16Mi", "--access", "open")
	l.Run("nbd-client", "-d", i.Attach("e7.1"))
	l.Eventually(10*time.Second, "state failed", func() error {
		if list := stat(t, i); len(list) != 1 || list[0].State != "failed" {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	dev := i.Attach("e7.1")
	l.Run("dd", "if="+dev, "of=/dev/null", "bs=1M", "iflag=direct")
	if list := stat(t, i); len(list) != 1 || list[0].State != "live" {
		t.Errorf("attached again: %+v", list)
	}
	i.Detach("e7.1")
}
