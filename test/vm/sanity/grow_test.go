//go:build vm

package sanity

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// online asks for a front end whose devices grow while they are in use.
var online = map[string]string{"onlineExpansion": "true"}

// grow asks the controller for a larger volume.
func (l *life) grow(size int64) error {
	_, err := l.controller.ControllerExpandVolume(l.ctx(), &csi.ControllerExpandVolumeRequest{
		VolumeId: l.volume.GetVolumeId(), VolumeCapability: l.capability, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	return err
}

// follow asks the node to follow, as the kubelet does for a running pod.
func (l *life) follow(target string, size int64) error {
	response, err := l.nodeClient.NodeExpandVolume(l.ctx(), &csi.NodeExpandVolumeRequest{
		VolumeId: l.volume.GetVolumeId(), VolumePath: l.target(target), StagingTargetPath: l.staging, VolumeCapability: l.capability,
		CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	if err == nil && response.GetCapacityBytes() != size {
		l.t.Errorf("the node answers %d bytes, want %d", response.GetCapacityBytes(), size)
	}
	return err
}

// device is the name of the volume's block device, "nbd0".
func (l *life) device() string {
	l.t.Helper()
	out, err := l.initiator.CLI(10*time.Second, "stat", l.volume.GetVolumeId(), "-o", "json")
	var list struct{ Attachments []struct{ Device string } }
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil || len(list.Attachments) != 1 {
		l.t.Fatalf("stat: %v\n%s", err, out)
	}
	return filepath.Base(list.Attachments[0].Device)
}

// attribute reads what sysfs says about the volume's device.
func (l *life) attribute(name string) string {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/block", l.device(), name))
	l.must(err)
	return strings.TrimSpace(string(text))
}

// wantDevice checks the size of the block device in bytes.
func (l *life) wantDevice(size int64) {
	l.t.Helper()
	if got := l.attribute("size"); got != strconv.FormatInt(size/512, 10) {
		l.t.Errorf("the device has %s sectors, want %d bytes", got, size)
	}
}

// room is the size of the file system at a path in bytes, without what it keeps for itself.
func (l *life) room(target string) int64 {
	l.t.Helper()
	var stat unix.Statfs_t
	l.must(unix.Statfs(l.target(target), &stat))
	return int64(stat.Blocks) * stat.Frsize
}

// fill takes room for a file of size bytes and writes at its end; all of it would take an emulated machine minutes.
func (l *life) fill(target string, size int64) {
	l.t.Helper()
	file, err := os.Create(filepath.Join(l.target(target), "large"))
	l.must(err)
	l.must(unix.Fallocate(int(file.Fd()), 0, 0, size))
	_, err = file.WriteAt(make([]byte, mib), size-mib)
	l.must(err)
	l.must(file.Sync())
	l.must(file.Close())
}

// A mounted file system grows under fio: no error, every checksum right, and what the kernel was told when the device was made still holds.
func TestGrowUnderLoad(t *testing.T) {
	s := newStack(t)
	for _, test := range []struct {
		fsType   string
		from, to int64
	}{
		{"ext4", 64 * mib, 256 * mib},
		{"xfs", 320 * mib, 640 * mib},
	} {
		t.Run(test.fsType, func(t *testing.T) {
			l := s.newLife(t, "load-"+test.fsType, test.from, mounted(test.fsType, singleWriter), online)
			l.up("pod")
			before, limits := l.room("pod"), l.attribute("queue/max_sectors_kb")+" "+l.attribute("queue/io_timeout")
			fio := s.host.Start(lab.FioVerify("grow", filepath.Join(l.target("pod"), "file"), 20*time.Second, "--size=16m")...)
			time.Sleep(5 * time.Second) // into the middle of it
			start := time.Now()
			l.must(l.grow(test.to))
			l.must(l.follow("pod", test.to))
			t.Logf("figure: %s grew from %d to %d MiB under load in %v", test.fsType, test.from/mib, test.to/mib, time.Since(start).Round(time.Millisecond))
			if !fio.Running() {
				t.Error("fio had ended before the volume grew")
			}
			l.wantDevice(test.to)
			if after := l.room("pod"); after < before+(test.to-test.from)*8/10 {
				t.Errorf("the file system had %d bytes and has %d", before, after)
			}
			if got := l.attribute("queue/max_sectors_kb") + " " + l.attribute("queue/io_timeout"); got != limits {
				t.Errorf("limits of the queue are %s, were %s", got, limits)
			}
			if out, err := fio.Wait(3 * time.Minute); err != nil || strings.Contains(out, "verify:") {
				t.Errorf("fio: %v\n%s", err, out)
			}
			l.fill("pod", test.from)         // more than the file system had before
			l.must(l.follow("pod", test.to)) // again
			l.down("pod")
			l.remove()
		})
	}
	s.nothingLeft(t)
}

// A volume that grew while it was on no node has the new size, file system included, when it is mounted again; a raw one while it is open.
func TestGrowAtTheNextMount(t *testing.T) {
	s := newStack(t)
	l := s.newLife(t, "later", 64*mib, mounted("", singleWriter), nil)
	l.up("pod")
	before := l.room("pod")
	data := make([]byte, 4*mib)
	_, _ = rand.Read(data)
	l.must(os.WriteFile(filepath.Join(l.target("pod"), "file"), data, 0o600))
	l.down("pod")
	l.must(l.grow(200 * mib))
	l.up("pod")
	l.wantDevice(200 * mib)
	if after := l.room("pod"); after < before+100*mib {
		t.Errorf("the file system had %d bytes and has %d", before, after)
	}
	l.must(l.follow("pod", 200*mib))
	if got, err := os.ReadFile(filepath.Join(l.target("pod"), "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read back %d bytes, %v; not what was written", len(got), err)
	}
	l.down("pod")
	l.remove()

	l = s.newLife(t, "rawgrow", 64*mib, raw(singleWriter), online)
	l.up("disk")
	device, err := os.OpenFile(l.target("disk"), os.O_RDWR, 0)
	l.must(err)
	l.must(l.grow(128 * mib))
	l.must(l.follow("disk", 128*mib))
	if end, err := device.Seek(0, 2); err != nil || end != 128*mib {
		t.Errorf("the open device ends at %d, %v", end, err)
	}
	_, err = device.WriteAt(data, 100*mib)
	l.must(err)
	l.must(device.Sync())
	l.must(device.Close())
	l.down("disk")
	l.remove()
	s.nothingLeft(t)
}

// A ublk device on a kernel that cannot change its size: the answer says so and what to do, the pod goes on, and the next mount has the size.
func TestGrowWhereTheKernelCannot(t *testing.T) {
	frontend := "ublk"
	if !slices.Contains(lab.Frontends(), frontend) {
		frontend = "nbd" // which can on every kernel
	}
	s := newStack(t)
	l := s.newLife(t, frontend, 64*mib, mounted("", singleWriter), map[string]string{"frontend": frontend})
	l.up("pod")
	before := l.room("pod")
	l.must(l.grow(192 * mib))
	err := l.follow("pod", 192*mib)
	if err == nil {
		t.Log("this kernel can")
	} else {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restart the pod") || !strings.Contains(err.Error(), "6.16") {
			t.Errorf("expansion on the node: %v, want FailedPrecondition with what to do", err)
		}
		l.wantDevice(64 * mib)
	}
	l.must(os.WriteFile(filepath.Join(l.target("pod"), "file"), make([]byte, mib), 0o600))
	l.down("pod")
	l.up("pod")
	l.wantDevice(192 * mib)
	l.must(l.follow("pod", 192*mib))
	if after := l.room("pod"); after < before+100*mib {
		t.Errorf("the file system had %d bytes and has %d", before, after)
	}
	l.down("pod")
	l.remove()
	s.nothingLeft(t)
}

// While the target is away nothing grows and nothing hangs, with I/O pending or without; when it is back the next try succeeds. The initiator's
// death in between changes nothing.
func TestGrowWithoutATarget(t *testing.T) {
	s := newStack(t)
	l := s.newLife(t, "away", 64*mib, mounted("", singleWriter), online)
	l.up("pod")
	l.must(l.grow(128 * mib))
	s.target.Kill()
	refused := func(what string, call func() error) {
		t.Helper()
		start := time.Now()
		if err := call(); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", what, err)
		}
		t.Logf("figure: %s refused in %v", what, time.Since(start).Round(time.Millisecond))
	}
	refused("expansion on the node", func() error { return l.follow("pod", 128*mib) })
	refused("expansion on the shelf", func() error { return l.grow(256 * mib) })
	// A write that waits for the target: asked now, the kernel would wait with it.
	written := make(chan error, 1)
	go func() {
		file, err := os.OpenFile(filepath.Join(l.target("pod"), "file"), os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
		if err == nil {
			_, err = file.Write(make([]byte, mib))
			_ = file.Close()
		}
		written <- err
	}()
	s.lab.Eventually(time.Minute, "a request under way", func() error {
		if fields := strings.Fields(l.attribute("inflight")); fields[0]+fields[1] == "00" {
			return context.DeadlineExceeded
		}
		return nil
	})
	refused("expansion on the node with I/O pending", func() error { return l.follow("pod", 128*mib) })
	l.wantDevice(64 * mib)
	s.initiator.Kill()
	s.initiator.StartAgain()
	s.target.StartAgain()
	s.lab.Eventually(2*time.Minute, "the expansion", func() error { return l.follow("pod", 128*mib) })
	l.wantDevice(128 * mib)
	if err := <-written; err != nil {
		t.Errorf("the write that waited: %v", err)
	}
	l.must(l.grow(256 * mib))
	l.must(l.follow("pod", 256*mib))
	l.wantDevice(256 * mib)
	l.down("pod")
	l.remove()
	s.nothingLeft(t)
}
