//go:build vm

// Package faults breaks the network and the target under a verified load, on real devices.
package faults

import (
	"crypto/rand"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// rough is a network in which much goes wrong; what vblade cannot take, copies, comes last.
var rough = []string{"delay", "5ms", "3ms", "loss", "5%", "reorder", "25%", "50%", "duplicate", "5%"}

// TestNetem: verified load while the network loses, doubles, delays and reorders frames; nothing may fail or differ.
func TestNetem(t *testing.T) {
	l := lab.New(t)
	target, initiator := l.Host("t").Target(7), l.Host("a").Initiator()
	target.MustLun("create", "e7.0", "--size", "128Mi", "--access", "open")
	netem(t, initiator, "e7.0", rough)
}

// TestNetemVblade is TestNetem with vblade, but for copies: a write of which one comes late undoes a later one there, and nothing on
// this side of the wire can prevent that.
func TestNetemVblade(t *testing.T) {
	l := lab.New(t)
	l.Host("v").Vblade(3, 1, 128<<20)
	netem(t, l.Host("a").Initiator(), "e3.1", rough[:len(rough)-2])
}

// netem has a target written and verified through a rough network, for 5 min with FULL=1.
func netem(t *testing.T, initiator *lab.Initiator, addr string, spec []string) {
	t.Helper()
	d := 20 * time.Second
	if os.Getenv("FULL") == "1" {
		d = 5 * time.Minute
	} else {
		t.Logf("figure: shortened to %v of 5 min; FULL=1 for all", d)
	}
	dev := initiator.Attach(addr)
	initiator.Netem(spec...)
	out, err := initiator.Start(lab.FioVerify("netem", dev, d)...).Wait(d + 3*time.Minute)
	stat, _ := initiator.CLI(10*time.Second, "stat", "-o", "json")
	if err != nil {
		t.Fatalf("fio with %v: %v\n%s\n%s", spec, err, out, stat)
	}
	t.Logf("figure: %v of verified load with %v: no error, no mismatch\n%s\n%s", d, spec, out, stat)
	initiator.Netem()
	initiator.Detach(addr)
}

// TestTargetKilled: SIGKILL to the target during load, started again on the same directory, three times: I/O waits and goes on.
func TestTargetKilled(t *testing.T) {
	l := lab.New(t)
	target, initiator := l.Host("t").Target(7), l.Host("a").Initiator()
	gen := createManaged(t, target, "e7.1", "128Mi")
	target.MustLun("admit", "e7.1", "--node", "a", "--mac", initiator.MAC)
	dev := initiator.Attach("e7.1", "--generation", gen)
	fio := initiator.Start(lab.FioVerify("killed", dev, 45*time.Second)...)
	for range 3 {
		time.Sleep(5 * time.Second)
		if !fio.Running() {
			out, err := fio.Wait(time.Second)
			t.Fatalf("fio ended early: %v\n%s", err, out)
		}
		target.Kill()
		time.Sleep(2 * time.Second)
		target.StartAgain()
	}
	out, err := fio.Wait(4 * time.Minute)
	if err != nil {
		t.Fatalf("fio over kills of the target: %v\n%s", err, out)
	}
	t.Log(out)
	initiator.Detach("e7.1")
}

// TestFlushHoldsOverKill: what fsync promised is in the LUN when the target is killed right after the promise.
func TestFlushHoldsOverKill(t *testing.T) {
	l := lab.New(t)
	target, initiator := l.Host("t").Target(7), l.Host("a").Initiator()
	target.MustLun("create", "e7.2", "--size", "64Mi", "--access", "open")
	dev := initiator.Attach("e7.2")
	for round := range 3 {
		data := make([]byte, 4<<20)
		_, _ = rand.Read(data) // never fails
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, int64(round)*int64(len(data))); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatalf("fsync in round %d: %v", round, err)
		}
		target.Kill()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		lun := lunFile(t, target, 64<<20)
		got := make([]byte, len(data))
		g, err := os.Open(lun)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.ReadAt(got, int64(round)*int64(len(data))); err != nil {
			t.Fatal(err)
		}
		_ = g.Close()
		if sha256.Sum256(got) != sha256.Sum256(data) {
			t.Fatalf("round %d: the LUN's file lacks what fsync promised", round)
		}
		target.StartAgain()
	}
	initiator.Detach("e7.2")
}

// lunFile is the only backing file of that many bytes in the target's directory.
func lunFile(t *testing.T, target *lab.Target, size int64) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(filepath.Join(target.Dir, "luns"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() == size {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("backing files of %d bytes: %v, %v", size, found, err)
	}
	return found[0]
}

// createManaged makes a managed LUN and returns its generation.
func createManaged(t *testing.T, target *lab.Target, addr, size string) string {
	t.Helper()
	out := target.MustLun("create", addr, "--size", size)
	_, rest, ok := strings.Cut(out, addr+"-")
	if !ok || len(rest) < 16 {
		t.Fatalf("lun create says %q, not the handle", out)
	}
	return rest[:16]
}
