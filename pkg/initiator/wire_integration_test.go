//go:build integration

package initiator

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const insideEnv = "AOE_CSI_TEST_NETNS"

// TestMain runs the tests once more in a network namespace of their own, which has no name and goes with the process.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "network namespace (root needed): %v\n", err)
		os.Exit(1)
	}
}

// cable makes a veth pair NAME-i and NAME-t that goes with the test.
func cable(t testing.TB, name string, mtu int) (initiator, target string) {
	t.Helper()
	initiator, target = name+"-i", name+"-t"
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = initiator, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: target, PeerMTU: uint32(mtu)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	for _, end := range []string{initiator, target} {
		setUp(t, end, true)
	}
	for _, end := range []string{initiator, target} {
		eventually(t, end+" has a carrier", func() bool {
			l, err := netlink.LinkByName(end)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
	return initiator, target
}

func setUp(t testing.TB, name string, up bool) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil && up {
		err = netlink.LinkSetUp(l)
	} else if err == nil {
		err = netlink.LinkSetDown(l)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func packetShard(t testing.TB, runDir string, interfaces ...string) *Shard {
	t.Helper()
	s, err := NewShard(ShardConfig{Index: 1, Interfaces: interfaces, RunDir: runDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func diskFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// load writes and reads at random with many requests at once, each goroutine in its own part of the disk, and compares.
func load(t *testing.T, d *Device, workers, rounds int) {
	t.Helper()
	sectors := int(d.Info().Sectors) / workers
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 7))
			want := make([]byte, sectors*aoe.SectorSize)
			base := uint64(w * sectors)
			fill := &Request{Op: OpWrite, LBA: base, Sectors: uint32(sectors), Data: want}
			if err := do(t, d, fill); err != nil {
				t.Error(err)
				return
			}
			for range rounds {
				n := 1 + dice.IntN(min(256, sectors))
				at := dice.IntN(sectors - n + 1)
				part := want[at*aoe.SectorSize:][:n*aoe.SectorSize]
				if dice.IntN(2) == 0 {
					for i := range part {
						part[i] = byte(dice.Uint32())
					}
					if err := do(t, d, &Request{Op: OpWrite, LBA: base + uint64(at), Sectors: uint32(n), Data: part}); err != nil {
						t.Error(err)
						return
					}
					continue
				}
				got := make([]byte, len(part))
				if err := do(t, d, &Request{Op: OpRead, LBA: base + uint64(at), Sectors: uint32(n), Data: got}); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, part) {
					t.Errorf("worker %d: %d sectors at %d differ", w, n, at)
					return
				}
			}
		})
	}
	group.Wait()
}
