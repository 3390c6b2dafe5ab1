//go:build integration

package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// handOvers is how often the LUN changes hands.
const handOvers = 100

// member is a node and what it is called.
type member struct {
	*host
	name string
}

// TestFencing hands a LUN from one node to the other and back. The old one goes on writing as fast as it can, and the network lets go of frames of it that
// it had held; the target's disk is slow, so that more of them are queued there. From the moment the expulsion is confirmed nothing changes but by the new one.
func TestFencing(t *testing.T) {
	s := newSegment(t, "hub")
	storage := s.host("slow target", "t")
	old, next := member{s.host("node", "a"), "node-a"}, member{s.host("node", "b"), "node-b"}
	f := &fencing{t: t, s: s, storage: storage, file: lunFile(t, storage.dir)}
	f.admit(old)
	old.call("Attach", struct{}{}, nil)
	old.call("Fill", uint64(1), nil)
	f.filled = 1
	for range handOvers {
		f.handOver(old, next)
		old, next = next, old
	}
	var stats target.Stats
	storage.call("Stats", struct{}{}, &stats)
	figure(t, "%d hand-overs, each %v (%v until the expulsion was confirmed): no mismatch, no wrong node fenced; the old nodes had %d writes done before and tried %d frames after, %d held frames were let go; the target refused %d frames, %d stale",
		f.done, (f.took / time.Duration(f.done)).Round(time.Millisecond), (f.fenced / time.Duration(f.done)).Round(10*time.Microsecond), f.before, f.after, f.released, stats.Refused, stats.Stale)
	if f.released < handOvers || f.after < handOvers || stats.Refused < f.after {
		t.Errorf("too little was tried: this shows nothing")
	}
}

// fencing is what a test of hand-overs knows.
type fencing struct {
	t       *testing.T
	s       *segment
	storage *host
	file    string
	filled  uint64 // mark of the last Fill
	recent  []frame

	done          int
	before, after uint64 // writes, frames
	released      int
	took, fenced  time.Duration
}

// frame is one that the network held.
type frame struct {
	bytes []byte
	since time.Time
}

// duplicateLifetime is how long the network may hold a frame (docs/design.md).
const duplicateLifetime = time.Second

func (f *fencing) admit(n member) {
	f.t.Helper()
	f.storage.call("Admit", target.Admission{Node: n.name, MACs: n.macs}, new(target.LUN))
}

// handOver takes the LUN from old and gives it to next.
func (f *fencing) handOver(old, next member) {
	f.t.Helper()
	began := time.Now()
	hammered := uint64(1000 + f.done)
	old.call("Hammer", hammered, nil)
	f.progress(old, 20)
	f.hold(old)
	f.progress(old, 1) // it writes right through the fence

	var sent, sentLater initiator.Stats
	at := time.Now()
	f.storage.call("Expel", old.name, new(target.LUN))
	f.fenced += time.Since(at)
	fenced := f.content()
	f.only(fenced, f.filled, hammered)
	old.call("Stats", struct{}{}, &sent)
	stop := f.rogue()

	f.release(0.5)
	f.admit(next)
	if err := f.storage.try("Admit", target.Admission{Node: old.name, MACs: old.macs}, new(target.LUN)); err == nil || !strings.Contains(err.Error(), target.ErrAdmitted.Error()) {
		f.t.Fatalf("hand-over %d: %s was admitted beside %s: %v", f.done, old.name, next.name, err)
	}
	next.call("Attach", struct{}{}, nil)
	if now := f.content(); !bytes.Equal(now, fenced) {
		f.t.Fatalf("hand-over %d: the LUN changed after %s was expelled: %v", f.done, old.name, compare(now, fenced))
	}
	f.filled = uint64(1_000_000 + f.done)
	next.call("Fill", f.filled, nil)
	f.release(1)
	// The late repetition of an unpublish fences nobody else.
	f.storage.call("Expel", old.name, new(target.LUN))
	next.call("Verify", f.filled, nil)
	f.only(f.content(), f.filled)
	var lun target.LUN
	f.storage.call("Get", struct{}{}, &lun)
	if len(lun.Admitted) != 1 || lun.Admitted[0].Node != next.name {
		f.t.Fatalf("hand-over %d: admitted is %v, want %s", f.done, lun.Admitted, next.name)
	}

	f.after += stop()
	next.call("Verify", f.filled, nil) // the target has seen all that was sent before
	old.call("Stats", struct{}{}, &sentLater)
	var wrote HammerStats
	old.call("Rest", struct{}{}, &wrote)
	old.call("Detach", struct{}{}, nil)
	f.only(f.content(), f.filled)
	f.before += wrote.OK
	f.after += sentLater.FramesSent - sent.FramesSent
	f.done++
	f.took += time.Since(began)
}

// TestFencingReadmitted: a node that is cut off while it is taken off, and is let in again after another one has used the LUN, changes nothing with what it had
// left, until it attaches anew.
func TestFencingReadmitted(t *testing.T) {
	s := newSegment(t, "hub")
	storage := s.host("slow target", "t")
	a, b := member{s.host("node", "a"), "node-a"}, member{s.host("node", "b"), "node-b"}
	f := &fencing{t: t, s: s, storage: storage, file: lunFile(t, storage.dir)}
	const rounds = 20
	refused := uint64(0)
	for f.done = range rounds {
		f.admit(a)
		a.call("Attach", struct{}{}, nil)
		a.call("Hammer", uint64(1), nil)
		f.progress(a, 5)
		s.must(netlink.LinkSetNoMaster(a.ports[0]))
		storage.call("Expel", a.name, new(target.LUN))
		f.admit(b)
		b.call("Attach", struct{}{}, nil)
		mark := uint64(1000 + f.done)
		b.call("Fill", mark, nil)
		b.call("Detach", struct{}{}, nil)
		storage.call("Expel", b.name, new(target.LUN))
		var before, after HammerStats
		a.call("Hammered", struct{}{}, &before)
		f.admit(a)
		s.must(netlink.LinkSetMaster(a.ports[0], s.bridge))
		eventually(t, "the node's writes to be refused", func() bool {
			a.call("Hammered", struct{}{}, &after)
			return after.OK > before.OK || after.Failed > 2*hammerDepth
		})
		if after.OK > before.OK {
			t.Fatalf("round %d: %d writes of before were taken", f.done, after.OK-before.OK)
		}
		refused += after.Failed
		a.call("Rest", struct{}{}, &after)
		f.only(f.content(), mark)
		a.call("Detach", struct{}{}, nil)
		a.call("Attach", struct{}{}, nil)
		a.call("Verify", mark, nil)
		a.call("Detach", struct{}{}, nil)
		storage.call("Expel", a.name, new(target.LUN))
	}
	figure(t, "%d times cut off, taken off and let in again: %d writes of before were refused, none was taken; a new attachment works each time", rounds, refused)
}

// progress waits until a hammer has done more writes.
func (f *fencing) progress(n member, more uint64) {
	f.t.Helper()
	var before, now HammerStats
	n.call("Hammered", struct{}{}, &before)
	eventually(f.t, n.name+" writes", func() bool {
		n.call("Hammered", struct{}{}, &now)
		return now.OK >= before.OK+more
	})
	if now.Failed > 0 {
		f.t.Fatalf("hand-over %d: %d writes of %s failed while it was admitted", f.done, now.Failed, n.name)
	}
}

// hold takes a node's cable out of the segment until some of its writes are held.
func (f *fencing) hold(n member) {
	f.t.Helper()
	port := n.ports[0]
	fd := openPort(f.t, port)
	defer unix.Close(fd)
	f.s.must(netlink.LinkSetNoMaster(port))
	writes := 0
	buf := make([]byte, 1<<16)
	eventually(f.t, "frames to hold", func() bool {
		for {
			got, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return writes >= 8
			}
			f.s.must(err)
			view, err := aoe.ParseFrame(buf[:got])
			if err != nil || view.Src() != n.macs[0] || view.IsResponse() {
				continue
			}
			if ata, err := view.ATA(); err != nil || !ata.Command().IsWrite() {
				continue
			}
			writes++
			f.recent = append(f.recent, frame{bytes.Clone(buf[:got]), time.Now()})
		}
	})
	f.s.must(netlink.LinkSetMaster(port, f.s.bridge))
}

// release lets a share of the held frames go to the target, those of earlier hand-overs among them, as long as a network may hold them.
func (f *fencing) release(share float64) {
	f.t.Helper()
	fd := openPort(f.t, f.storage.ports[0])
	defer unix.Close(fd)
	n := int(float64(len(f.recent)) * share)
	for _, held := range f.recent[:n] {
		if time.Since(held.since) > duplicateLifetime*8/10 {
			continue
		}
		if _, err := unix.Write(fd, held.bytes); err != nil {
			f.t.Fatal(err)
		}
		f.released++
	}
	for len(f.recent) > 0 && time.Since(f.recent[0].since) > duplicateLifetime {
		f.recent = f.recent[1:]
	}
}

// rogue goes on as the expelled node would if it believed no refusal: writes in its session, with tags that the target has not seen, until it is stopped. It
// says how many there were.
func (f *fencing) rogue() (stop func() uint64) {
	fd := openPort(f.t, f.storage.ports[0])
	write := aoe.Frame(bytes.Clone(f.recent[len(f.recent)-1].bytes))
	ended, count := make(chan struct{}), make(chan uint64)
	go func() {
		defer unix.Close(fd)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for n := uint64(0); ; {
			select {
			case <-ended:
				count <- n
				return
			case <-tick.C:
				tag := write.Tag()
				write.SetTag(aoe.MakeTag(aoe.TagShard(tag), aoe.TagEpoch(tag), aoe.TagCounter(tag)+1))
				if _, err := unix.Write(fd, write); err == nil {
					n++
				}
			}
		}
	}()
	return func() uint64 { close(ended); return <-count }
}

// openPort opens the segment's end of a cable: what is written there reaches the host.
func openPort(t *testing.T, port netlink.Link) int {
	t.Helper()
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, 0x88a2))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: port.Attrs().Index})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// content is what the LUN's file has.
func (f *fencing) content() []byte {
	f.t.Helper()
	data, err := os.ReadFile(f.file)
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

// only fails the test unless every byte was written with one of the marks, where it is.
func (f *fencing) only(data []byte, marks ...uint64) {
	f.t.Helper()
	want := make([]byte, piece*aoe.SectorSize)
next:
	for at := 0; at < len(data); at += len(want) {
		for _, mark := range marks {
			fill(want, mark, uint64(at/aoe.SectorSize))
			if bytes.Equal(data[at:at+len(want)], want) {
				continue next
			}
		}
		f.t.Fatalf("hand-over %d: byte %d of the LUN has % x, which is of none of %v", f.done, at, data[at:at+16], marks)
	}
}

// lunFile is the only file of the LUN's size.
func lunFile(t *testing.T, dir string) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() == lunBytes {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("files of %d bytes: %v, %v", lunBytes, found, err)
	}
	return found[0]
}
