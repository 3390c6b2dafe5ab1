package target

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// A test that kills its target has it in a process of its own: this test binary, started with childDir set.
const (
	childDir    = "AOE_CSI_TEST_TARGET_DIR"
	childSocket = "AOE_CSI_TEST_TARGET_SOCKET"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := serveChild(dir, os.Getenv(childSocket)); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveChild(dir, socket string) error {
	s, err := Open(Config{Dir: dir})
	if err != nil {
		return err
	}
	listener, err := link.ListenLocal(socket)
	if err != nil {
		return err
	}
	return errors.Join(s.ServeLocal(context.Background(), listener), s.Close())
}

// startChild serves dir; kill ends it as SIGKILL does, at any point.
func startChild(t *testing.T, dir, socket string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childSocket+"="+socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l, err := link.DialLocal(socket, macA)
		if err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return kill
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// The target is killed under load, again and again: everything it acknowledged is there, old sessions are not.
func TestKilledUnderLoad(t *testing.T) {
	r := newRig(t)
	r.lun(ManagedAccess)
	r.admit("node-a", macA)
	dir, socket := r.config.Dir, r.socket
	r.stop()

	acknowledged := make(map[uint64]byte)
	epochs := make(map[uint8]bool)
	var cache uint64
	for round := range uint64(5) {
		kill := startChild(t, dir, socket)
		c := r.client(macA)
		o := c.open(aoe.OpenSession, uuidA, round+1, testGen)
		if o.Status() != aoe.OpenDone || epochs[o.Epoch()] {
			t.Fatalf("round %d: OPEN %v, epoch %d", round, o.Status(), o.Epoch())
		}
		epochs[o.Epoch()] = true
		if cache != 0 && o.CacheEpoch() != cache {
			t.Fatalf("round %d: cache epoch changed though nothing is lost", round)
		}
		cache = o.CacheEpoch()
		counter := uint32(0)
		next := func() uint32 { counter++; return tag(o.Epoch(), counter) }
		for lba, want := range acknowledged {
			got, _ := wantOK(t, c.call(c.read(next(), lba, 8))).Payload(8)
			if !bytes.Equal(got, block(want, 8)) {
				t.Fatalf("round %d: acknowledged write at %d is lost", round, lba)
			}
		}
		for i := range uint64(100) {
			lba, b := (round*31+i*8)%(lunSectors-8)/8*8, byte(round*100+i)
			wantOK(t, c.call(c.write(next(), lba, block(b, 8))))
			acknowledged[lba] = b
			if i%30 == 0 {
				wantOK(t, c.call(c.flush(next())))
			}
		}
		for i := range uint64(20) { // on their way when it is killed, to places of their own
			c.send(c.write(next(), lunSectors-8+i%2, block(1, 1)))
		}
		kill()
	}
	r.start()
	if _, err := r.shelf.Get(3, testGen); err != nil {
		t.Fatal(err)
	}
}
