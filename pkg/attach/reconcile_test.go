package attach

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// leave puts a device into the kernel of which nobody knows.
func (b *bench) leave(number int, id string, served bool) {
	b.t.Helper()
	b.kernel.set(func() {
		b.kernel.devices[number] = &fakeDisk{id: id}
		if served {
			b.kernel.devices[number].server = &fakeQueue{}
		}
	})
}

func (b *bench) has(number int) (there bool) {
	b.kernel.set(func() { _, there = b.kernel.devices[number] })
	return there
}

func TestReconcile(t *testing.T) {
	mine := func(b *bench, volume string) string {
		return deviceID(b.m.id.String(), Options{VolumeID: volume, Generation: generation})
	}
	for _, tt := range []struct {
		name    string
		prepare func(b *bench)
		kept    bool
		text    string // of the finding; empty: there is none
		after   bool   // a finding is still there after the pass
	}{
		{"left over", func(b *bench) { b.leave(9, mine(b, "e7.9"), false) }, false, "no record", false},
		{"left over, with strange characters", func(b *bench) { b.leave(9, mine(b, "a:b@c/d"), false) }, false, "volume a:b@c/d", false},
		{"never seen on the host", func(b *bench) { b.leave(10, mine(b, "e7.9"), false) }, false, "no record", false},
		{"served", func(b *bench) { b.leave(9, mine(b, "e7.9"), true) }, true, "still runs", true},
		{"mounted", func(b *bench) {
			b.leave(9, mine(b, "e7.9"), false)
			b.host = fakeHost(b.t, fakeDiskFiles(map[string]string{"sys/fs/ext4/fake9/": ""}))
		}, true, "a mounted file system", true},
		{"nobody can tell whether it is used", func(b *bench) {
			b.leave(9, mine(b, "e7.9"), false)
			b.host = fakeHost(b.t, map[string]string{"proc/self/ns/pid": "->pid:[1]"})
		}, true, "cannot be told", true},
		{"of another initiator", func(b *bench) { b.leave(9, blockdev.Mark+"other:e7.9@g", false) }, true, "another initiator", true},
		{"of another initiator, which serves it", func(b *bench) { b.leave(9, blockdev.Mark+"other:e7.9@g", true) }, true, "", false},
		{"its record is damaged", func(b *bench) {
			b.leave(9, mine(b, "e7.9"), false)
			b.damage("e7%2E9.record")
		}, true, "cannot be trusted", true},
		{"some record is damaged, nobody knows whose", func(b *bench) {
			b.leave(9, mine(b, "e7.9"), false)
			b.damage("what")
		}, true, "cannot be trusted", true},
		{"the record of another volume is damaged", func(b *bench) {
			b.leave(9, mine(b, "e7.9"), false)
			b.damage("e7%2E8.record")
		}, false, "no record", true},
		{"the kernel does not tell whose", func(b *bench) { b.leave(9, "", false) }, true, "no record names it", true},
		{"the kernel does not tell whose, served", func(b *bench) { b.leave(9, "", true) }, true, "", false},
		{"beside the volume's own", func(b *bench) {
			b.attach(1)
			b.leave(9, deviceID(b.m.id.String(), options(1)), false)
		}, true, "attached as another device", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.host = fakeHost(t, fakeDiskFiles(nil))
			tt.prepare(b)
			number := 9
			if b.has(10) {
				number = 10
			}
			b.m.cfg.host = b.host
			findings, err := b.m.Examine(context.Background(), false)
			if err != nil {
				t.Fatal(err)
			}
			if !b.has(number) {
				t.Fatal("looking at it removed it")
			}
			if text := describe(findings); (tt.text == "") != (len(findings) == 0) || !strings.Contains(text, tt.text) {
				t.Errorf("found: %s; want %q", text, tt.text)
			}
			b.stop()
			b.start()
			if tt.kept {
				b.m.tasks.Wait() // the pass is over
			} else {
				b.eventually("it is removed", func() bool { return !b.has(number) })
				b.m.tasks.Wait()
			}
			if b.has(number) != tt.kept {
				t.Errorf("kept: %v, want %v", b.has(number), tt.kept)
			}
			if findings, err = b.m.Examine(context.Background(), true); err != nil || (len(findings) > 0) != tt.after {
				t.Errorf("afterwards: %s, %v", describe(findings), err)
			}
		})
	}
}

// fakeDiskFiles are those of fake9, as the fake front end calls it.
func fakeDiskFiles(more map[string]string) map[string]string {
	files := make(map[string]string)
	for name, content := range disk(more) {
		files[strings.ReplaceAll(name, "nbd3", "fake9")] = content
	}
	return files
}

func (b *bench) damage(file string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.run, "attachments", file), []byte("x"), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func describe(findings []Finding) string {
	var all []string
	for _, f := range findings {
		all = append(all, f.Object+": "+f.What+" ("+f.Todo+")")
	}
	return strings.Join(all, "\n")
}

// TestExamineFindsNothing: while everything is as it should be, in use or not.
func TestExamineFindsNothing(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.attach(2)
	for range 2 {
		findings, err := b.m.Examine(context.Background(), true)
		if err != nil || len(findings) != 0 {
			t.Errorf("found %s, %v", describe(findings), err)
		}
		if !b.has(0) || !b.has(1) {
			t.Error("a device that is attached is gone")
		}
		b.stop()
		b.start()
	}
}

// TestExamineHost: without an initiator the same is seen, and repaired only while none runs.
func TestExamineHost(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	b.leave(10, deviceID(b.m.id.String(), options(3)), false)
	fronts := []blockdev.Frontend{&fakeFrontend{b.kernel}}
	lock, err := LockDirs(b.run, b.state)
	if err != nil {
		t.Fatal(err)
	}
	for _, fix := range []bool{false, true} {
		if _, err := ExamineHost(context.Background(), b.run, b.state, fronts, fix); !errors.Is(err, ErrRunning) {
			t.Errorf("beside an initiator, repairing %v: %v", fix, err)
		}
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	b.stop()
	findings, err := ExamineHost(context.Background(), b.run, b.state, fronts, false)
	if text := describe(findings); err != nil || len(findings) != 2 || !strings.Contains(text, "e7%2E1.record: no initiator serves") ||
		!strings.Contains(text, "volume e7.3, of which there is no record") {
		t.Errorf("found %s, %v", text, err)
	}
	if !b.has(0) || !b.has(10) {
		t.Error("looking removed something")
	}
	b.start()
}
