//go:build vm

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// margin is how long after its timeout a detach may take, and an attach of another volume altogether.
const margin = 10 * time.Second

// TestDetachEnds: the target is dead, no request more fits in the queue, a growth is pending. The detach ends all the same, what was
// outstanding fails, and another volume can be attached meanwhile.
func TestDetachEnds(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		const timeout = 5 * time.Second
		dead, alive, i := l.Host("t").Target(7), l.Host("u").Target(8), l.Host("a").Initiator()
		dead.MustLun("create", "e7.1", "--size", "64Mi", "--access", "open")
		alive.MustLun("create", "e8.1", "--size", "16Mi", "--access", "open")
		device := i.Attach("e7.1")
		dead.MustLun("grow", "e7.1", "--size", "128Mi")
		dead.Kill()
		load := fill(t, l, i.Host, device)
		grown := make(chan string, 1)
		go func() {
			asked := time.Now()
			out, err := i.CLI(2*time.Minute, "resize", "e7.1", "--size", "128Mi")
			grown <- fmt.Sprintf("%v after %v: %s", err, time.Since(asked).Round(time.Millisecond), out)
		}()
		time.Sleep(time.Second) // so that it is pending
		select {
		case says := <-grown:
			t.Errorf("the growth is not pending any more when the detach begins: %s", says)
			grown <- says
		default:
		}
		began := time.Now()
		detached := make(chan error, 1)
		go func() {
			out, err := i.CLI(2*time.Minute, "detach", "e7.1", "--timeout", timeout.String())
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			detached <- err
		}()
		i.Attach("e8.1")
		attached := time.Since(began)
		if err := <-detached; err != nil {
			t.Errorf("detach: %v", err)
		}
		took := time.Since(began)
		out, err := load.Wait(time.Minute)
		if err == nil || !strings.Contains(out, "Input/output error") {
			t.Errorf("the load whose requests were given up ended with %v\n%s", err, out)
		}
		t.Logf("the growth that was pending says: %s", <-grown)
		i.Detach("e8.1")
		dead.StartAgain()
		i.Attach("e7.1")
		dead.Kill()
		i.Detach("e7.1", "--force") // has nothing to wait for
		i.NothingLeft()
		figure(t, "detach with a dead target, a full queue and a growth pending took %v with a timeout of %v; attaching another volume meanwhile %v",
			took.Round(time.Millisecond), timeout, attached.Round(time.Millisecond))
		if took < timeout || took > timeout+margin || attached > margin {
			t.Errorf("before its timeout, more than %v after the timeout, or more than %v for the other volume", margin, margin)
		}
	})
}

// TestDetachEndsUnserved: the same for a device whose initiator died with its target, so that it cannot be taken over.
func TestDetachEndsUnserved(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		const timeout = 5 * time.Second
		target, i := l.Host("t").Target(7), l.Host("a").Initiator()
		target.MustLun("create", "e7.1", "--size", "64Mi", "--access", "open")
		device := i.Attach("e7.1")
		target.Kill()
		load := fill(t, l, i.Host, device)
		i.Kill()
		i.StartAgain()
		began := time.Now()
		// Until its timeout a detach says "not yet": the next initiator may still succeed.
		var last error
		for {
			out, err := i.CLI(time.Minute, "detach", "e7.1", "--timeout", timeout.String())
			if err == nil {
				break
			}
			last = fmt.Errorf("%w: %s", err, out)
			if time.Since(began) > timeout+margin+time.Minute {
				t.Fatalf("detach does not end: %v", last)
			}
			time.Sleep(200 * time.Millisecond)
		}
		took := time.Since(began)
		if out, err := load.Wait(time.Minute); err == nil || !strings.Contains(out, "Input/output error") {
			t.Errorf("the load whose requests were given up ended with %v\n%s", err, out)
		}
		i.NothingLeft()
		figure(t, "detach of a device that nobody could take over took %v with a timeout of %v", took.Round(time.Millisecond), timeout)
		if took > timeout+margin {
			t.Errorf("more than %v after the timeout: %v", margin, last)
		}
	})
}

// fill starts writing more than the queue or the socket holds, and waits until they are full.
func fill(t *testing.T, l *lab.Lab, h *lab.Host, device string) *lab.Process {
	t.Helper()
	load := h.Start("fio", "--name=full", "--filename="+device, "--ioengine=libaio", "--direct=1", "--rw=write", "--bs=256k",
		"--iodepth=128", "--size=48m")
	const still = 2 * time.Second // the longest time without a change in which it is not full yet
	last, since := "", time.Now()
	l.Eventually(2*time.Minute, "a full queue", func() error {
		now, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "inflight"))
		if err != nil {
			return err
		}
		if string(now) != last {
			last, since = string(now), time.Now()
		}
		var reads, writes int
		if _, err := fmt.Sscan(last, &reads, &writes); err != nil {
			return err
		}
		if writes < 8 || time.Since(since) < still {
			return fmt.Errorf("in flight: %s", last)
		}
		return nil
	})
	return load
}
