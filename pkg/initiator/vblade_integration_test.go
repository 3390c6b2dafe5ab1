//go:build integration

package initiator

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// vblade is a running one.
type vblade struct {
	t    testing.TB
	args []string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

func startVblade(t testing.TB, ifname, file string) *vblade {
	t.Helper()
	v := &vblade{t: t, args: []string{"-b", "16", "7", "3", ifname, file}}
	v.start()
	t.Cleanup(v.stop)
	return v
}

func (v *vblade) start() {
	v.t.Helper()
	v.cmd = exec.Command("vblade", v.args...)
	v.cmd.Stdout, v.cmd.Stderr = &v.out, &v.out
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("vblade (package vblade needed): %v", err)
	}
}

func (v *vblade) stop() {
	if v.cmd == nil {
		return
	}
	if err := v.cmd.Process.Kill(); err != nil {
		v.t.Errorf("vblade: %v: %s", err, v.out.String())
	}
	_ = v.cmd.Wait() // killed, as it says
	v.cmd = nil
}

func TestVblade(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			ours, theirs := cable(t, "vb", mtu)
			startVblade(t, theirs, diskFile(t, 16<<20))
			d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), DeviceConfig{Addr: testAddr})
			if err != nil {
				t.Fatal(err)
			}
			info := d.Info()
			if info.Flush || info.Session || info.FUA || info.Trim || info.Sectors != 16<<11 || !strings.Contains(info.Model, "vblade") {
				t.Errorf("info %+v", info)
			}
			if p := d.Paths(); len(p) != 1 || p[0].MaxSectors != aoe.MaxSectors(mtu) || p[0].Window > 16 {
				t.Errorf("paths %+v", p)
			}
			load(t, d, 16, 60)
			if err := d.Detach(within(t, 5*time.Second), false); err != nil {
				t.Error(err)
			}
			t.Logf("%+v", d.Stats())
		})
	}
}

// TestVbladeRestart: I/O waits for it, and goes on.
func TestVbladeRestart(t *testing.T) {
	ours, theirs := cable(t, "vr", 9000)
	v := startVblade(t, theirs, diskFile(t, 16<<20))
	d, err := packetShard(t, "", ours).Attach(within(t, 10*time.Second), DeviceConfig{Addr: testAddr})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		load(t, d, 8, 300)
	}()
	for range 3 {
		time.Sleep(100 * time.Millisecond) // of load, whatever it does just then
		v.stop()
		v.start()
	}
	<-done
	if d.Stats().Errors != 0 {
		t.Errorf("stats %+v", d.Stats())
	}
}
