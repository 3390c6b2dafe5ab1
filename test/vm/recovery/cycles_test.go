//go:build vm

package recovery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// TestCycles: a volume is attached, written to and detached again and again, while the initiator is killed in the middle of attaching, in
// the middle of detaching, in between, or not. Every volume works, and in the end there is nothing left of any of them.
func TestCycles(t *testing.T) {
	eachFrontend(t, func(t *testing.T, l *lab.Lab) {
		times := scaled(t, "cycles", 200, 8)
		c := cycles{t: t, l: l}
		target, host := l.Host("t").Target(7), l.Host("a")
		c.generation = managed(t, target, "e7.1", "16Mi", host)
		c.i = host.Supervised()
		c.once(nobody) // what is made once and kept is there
		before := c.open()

		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		c.random = rand.New(rand.NewPCG(seed, 0))
		kills := map[moment]int{}
		for range times {
			m := moment(c.random.IntN(int(moments)))
			kills[m]++
			c.once(m)
		}
		c.i.Kill()
		c.i.StartAgain()
		for range 5 {
			c.once(nobody)
		}
		c.i.NothingLeft()
		l.Eventually(time.Minute, "as many descriptors as before", func() error {
			if after := c.open(); after != before {
				return fmt.Errorf("initiator has open:\n%s\nbefore:\n%s", after, before)
			}
			return nil
		})
		figure(t, "%d cycles with %d kills while attaching, %d while attached, %d while detaching: no device, record, socket or descriptor left; "+
			"the longest that a call and its repetitions took: %v",
			times, kills[whileAttaching], kills[whileAttached], kills[whileDetaching], c.longest.Round(time.Millisecond))
		if c.longest > callPatience {
			t.Errorf("a call took longer than %v, though the target is there", callPatience)
		}
	})
}

// callPatience is far more than a restart needs, and less than the timeout of a detach whose target is gone.
const callPatience = 30 * time.Second

// moment is when the initiator is killed.
type moment int

const (
	nobody moment = iota // is killed
	whileAttaching
	whileAttached
	whileDetaching
	moments
)

type cycles struct {
	t          *testing.T
	l          *lab.Lab
	i          *lab.Initiator
	generation string
	random     *rand.Rand
	longest    time.Duration // that a call and its repetitions took
}

// once attaches, uses and detaches the volume.
func (c *cycles) once(m moment) {
	c.t.Helper()
	var device string
	c.call(m == whileAttaching, "attach", func(ctx context.Context, client initiatorv1.InitiatorClient) error {
		a, err := client.Attach(ctx, &initiatorv1.AttachRequest{
			VolumeId: "e7.1", Target: &initiatorv1.Target{Shelf: 7, Slot: 1}, Generation: c.generation, Frontend: c.l.Frontend})
		device = a.GetDevice()
		return err
	})
	if m == whileAttached {
		c.i.Signal(syscall.SIGKILL)
	}
	if err := writeBlock(device, 0, 'x'); err != nil {
		c.t.Fatalf("write to %s: %v", device, err)
	}
	c.call(m == whileDetaching, "detach", func(ctx context.Context, client initiatorv1.InitiatorClient) error {
		_, err := client.Detach(ctx, &initiatorv1.DetachRequest{VolumeId: "e7.1", Timeout: durationpb.New(time.Minute)})
		return err
	})
}

// call makes a call until it succeeds. If asked for, the initiator is killed during the first one.
func (c *cycles) call(kill bool, what string, f func(context.Context, initiatorv1.InitiatorClient) error) {
	c.t.Helper()
	defer func(began time.Time) { c.longest = max(c.longest, time.Since(began)) }(time.Now())
	if kill {
		done := make(chan error, 1)
		go func() { done <- c.i.Call(time.Minute, f) }()
		time.Sleep(time.Duration(c.random.Int64N(int64(400 * time.Millisecond))))
		c.i.Signal(syscall.SIGKILL)
		<-done // whatever it says
	}
	c.l.Eventually(2*time.Minute, what, func() error { return c.i.Call(time.Minute, f) })
}

// open lists what kinds of descriptors the initiator has how many of, and the sockets on its host.
func (c *cycles) open() string {
	dir := fmt.Sprintf("/proc/%d/fd", c.i.PID())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	count := map[string]int{}
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(name, ":[")
		count[kind]++
	}
	packet := c.i.Run("cat", "/proc/net/packet")
	return fmt.Sprintf("%v, %d packet sockets", count, strings.Count(packet, "\n")-1)
}
