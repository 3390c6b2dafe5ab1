//go:build integration

package aoe

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write what vblade answers to testdata/vblade.hex")

// segment is a cable with vblade at one end, in a network namespace of this test's thread.
type segment struct {
	t              *testing.T
	near, far      int // sockets that see what arrives at our end, and at vblade's
	nearMAC, other MAC
	farMAC         MAC
}

func newSegment(t *testing.T) *segment {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread, and the namespace with it, end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace (root needed): %v", err)
	}
	s := &segment{t: t, nearMAC: testSrc, farMAC: testDst, other: MAC{2, 0, 0, 0, 0, 9}}
	s.run("ip", "link", "add", "near", "address", testSrc.String(), "type", "veth", "peer", "name", "far", "address", testDst.String())
	s.run("ip", "link", "set", "near", "up")
	s.run("ip", "link", "set", "far", "up")
	for !strings.Contains(s.run("ip", "link", "show", "near"), "state UP") {
		time.Sleep(time.Millisecond)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("v"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.near, s.far = s.socket("near"), s.socket("far")
	vblade := exec.Command("vblade", "7", "3", "far", disk)
	if err := vblade.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(vblade.Process.Kill(), unix.Close(s.near), unix.Close(s.far)); err != nil {
			t.Error(err)
		}
		if err := vblade.Wait(); err == nil {
			t.Error("vblade ended by itself")
		}
	})
	return s
}

func (s *segment) run(name string, args ...string) string {
	s.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (s *segment) socket(ifname string) int {
	s.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(ifname)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xa288, Ifindex: int(ifr.Uint32())})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return fd
}

// next is the next frame that arrives at a socket within d; nil: none.
func (s *segment) next(fd int, d time.Duration) Frame {
	s.t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(d)
	for {
		n, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if n == 0 {
			return nil
		}
		b := make([]byte, 10000)
		if n, err = unix.Read(fd, b); err != nil {
			s.t.Fatal(err)
		}
		return Frame(b[:n])
	}
}

// exchanges are tried in this order: what one sets, later ones see.
var exchanges = []struct {
	name  string
	build func(b []byte, h *Header) int
}{
	{"config-read", config(ConfigRead, "")},
	{"config-set", config(ConfigSet, "first")},
	{"config-set-again", config(ConfigSet, "second")},
	{"config-prefix", config(ConfigPrefix, "fi")},
	{"config-test", config(ConfigTest, "first")},
	{"config-test-other", config(ConfigTest, "firs")},
	{"config-force-set", config(ConfigForceSet, "")},
	{"identify", ata(ATAFields{Command: ATAIdentify, Sectors: 1, Device: 0xa0})},
	{"identify-of-2", ata(ATAFields{Command: ATAIdentify, Sectors: 2, Device: 0xa0})},
	{"read-ext", ata(ATAFields{Flags: ATAExtended, Command: ATAReadExt, Sectors: 2, LBA: 1000})},
	{"read-28", ata(ATAFields{Command: ATARead, Sectors: 1, LBA: 2047, Device: 0xe0})},
	{"read-past-the-end", ata(ATAFields{Flags: ATAExtended, Command: ATAReadExt, Sectors: 1, LBA: 1 << 40})},
	{"write-ext", ata(ATAFields{Flags: ATAExtended | ATAWrite, Command: ATAWriteExt, Sectors: 1, LBA: 5})},
	{"write-cut", func(b []byte, h *Header) int {
		return ata(ATAFields{Flags: ATAExtended | ATAWrite, Command: ATAWriteExt, Sectors: 2, LBA: 5})(b, h) - SectorSize
	}},
	{"flush", ata(ATAFields{Command: ATAFlush})},
	{"flush-ext", ata(ATAFields{Flags: ATAExtended, Command: ATAFlushExt})},
	{"trim", ata(ATAFields{Flags: ATAExtended | ATAWrite, Command: ATADataSetManagement, Feature: FeatureTrim, Sectors: 1})},
	{"reserve-read", reserve(ReserveRead)},
	{"reserve-for-another", reserve(ReserveForceSet, MAC{2, 0, 0, 0, 0, 9})},
	{"reserve-refused", reserve(ReserveSet, testSrc)},
	{"read-reserved", ata(ATAFields{Flags: ATAExtended, Command: ATAReadExt, Sectors: 1})},
	{"reserve-release", reserve(ReserveForceSet)},
	{"open", func(b []byte, h *Header) int { return PutOpen(b, h, &OpenFields{Incarnation: 1}) }},
	{"mask-read", mask(MaskRead)},
	{"mask-add", mask(MaskEdit, Directive{DirectiveAdd, testSrc}, Directive{DirectiveAdd, MAC{2, 0, 0, 0, 0, 8}})},
	{"mask-bad", mask(MaskEdit, Directive{DirectiveAdd, testSrc}, Directive{9, testSrc})},
	{"mask-delete", mask(MaskEdit, Directive{DirectiveDelete, MAC{2, 0, 0, 0, 0, 8}})},
}

func config(c ConfigCommand, s string) func([]byte, *Header) int {
	return func(b []byte, h *Header) int {
		return PutConfig(b, h, &ConfigFields{Command: c, ConfigString: []byte(s)})
	}
}

func ata(r ATAFields) func([]byte, *Header) int {
	return func(b []byte, h *Header) int {
		n := PutATA(b, h, &r)
		if r.Flags&ATAWrite != 0 {
			data := b[n : n+int(r.Sectors)*SectorSize]
			for i := range data {
				data[i] = byte(i)
			}
			if r.Command == ATADataSetManagement {
				PutTrim(data, 8, 100)
			}
			n += len(data)
		}
		return n
	}
}

func mask(c MaskCommand, list ...Directive) func([]byte, *Header) int {
	return func(b []byte, h *Header) int { return PutMACMask(b, h, c, list) }
}

func reserve(c ReserveCommand, list ...MAC) func([]byte, *Header) int {
	return func(b []byte, h *Header) int { return PutReserve(b, h, c, list) }
}

// TestVblade holds vblade's answers against testdata, or with -update writes them there.
func TestVblade(t *testing.T) {
	s := newSegment(t)
	s.waitForVblade()
	var out bytes.Buffer
	note := func(name string, f Frame) { fmt.Fprintf(&out, "%s %s\n", name, hex.EncodeToString(f)) }
	// aoeping does not take vblade's short answer, which a veth carries without padding, and waits until the alarm.
	if err := exec.Command("aoeping", "-s", "1", "7", "3", "near").Run(); err == nil {
		t.Error("aoeping took an answer of 32 bytes")
	}
	note("aoeping", s.next(s.far, 0))
	note("aoeping-answer", s.next(s.near, 0))
	for i, x := range exchanges {
		b := make([]byte, 2000)
		n := x.build(b, &Header{Dst: s.farMAC, Src: s.nearMAC, Addr: Addr{7, 3}, Tag: TagOwn | uint32(i)})
		if _, err := unix.Write(s.near, b[:Pad(b, n)]); err != nil {
			t.Fatal(err)
		}
		note(x.name, s.next(s.far, time.Second))
		patience := time.Second
		if x.name == "config-test-other" {
			patience = 50 * time.Millisecond // silence is the answer
		}
		if f := s.next(s.near, patience); f != nil {
			note(x.name+"-answer", f)
		}
	}
	if *update {
		if err := os.WriteFile("testdata/vblade.hex", out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	compare(t, golden(t, "vblade"), out.String())
}

// waitForVblade asks until it answers, and drains.
func (s *segment) waitForVblade() {
	s.t.Helper()
	b := make([]byte, MinFrameLen)
	PutConfig(b, &Header{Dst: Broadcast, Src: s.nearMAC, Addr: Any}, &ConfigFields{})
	for range 100 {
		if _, err := unix.Write(s.near, b); err != nil {
			s.t.Fatal(err)
		}
		if f := s.next(s.near, 50*time.Millisecond); f != nil {
			for _, fd := range []int{s.near, s.far} {
				for s.next(fd, 100*time.Millisecond) != nil {
				}
			}
			return
		}
	}
	s.t.Fatal("vblade does not answer")
}

// compare leaves out what differs from run to run: tags that tools choose, vblade's serial number (with the host's name) and padding.
func compare(t *testing.T, want map[string]Frame, got string) {
	t.Helper()
	seen := 0
	for line := range strings.Lines(got) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if want[name] == nil {
			t.Errorf("%s is not in testdata", name)
			continue
		}
		seen++
		if !bytes.Equal(comparable(name, b), comparable(name, want[name])) {
			t.Errorf("%s\n got %x\nwant %x", name, head(b), head(want[name]))
		}
	}
	if seen != len(want) {
		t.Errorf("%d of %d frames seen", seen, len(want))
	}
}

func comparable(name string, f Frame) []byte {
	f = bytes.Clone(f)
	if strings.HasPrefix(name, "aoe") {
		f.SetTag(0)
	}
	if name == "identify-answer" {
		clear(f[ATALen+2*wordSerial:][:SerialLen])
	}
	if len(f) == MinFrameLen && f.IsResponse() {
		f = f[:HeaderLen+2] // what pads short answers is left from other frames
	}
	return f
}
