package target

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// FuzzSession has a target serve one session while frames arrive that must not change anything: from senders that are not admitted, or outside the session.
// Its LUN has what the session wrote, and nothing else.
func FuzzSession(f *testing.F) {
	s, p := bench(f, ManagedAccess, nil)
	if _, err := s.Admit(context.Background(), 3, testGen, Admission{Node: "n", MACs: []aoe.MAC{macA}}); err != nil {
		f.Fatal(err)
	}
	c := &client{mac: macA, dst: link.LocalTargetMAC}
	// exchange hands over a frame and returns a copy of the answer to its tag; nil if there is none.
	exchange := func(frame []byte) (answer aoe.Frame) {
		p.handle(frame)
		p.serveStaged()
		for p.lent > 0 {
			p.takeBack(<-p.finished)
		}
		for _, out := range p.out {
			if got := aoe.Frame(out.Bytes()); len(frame) >= aoe.HeaderLen && got.Tag() == aoe.Frame(frame).Tag() {
				answer = bytes.Clone(got)
			}
		}
		p.settle()
		return answer
	}
	opened, err := exchange(c.openFrame(aoe.OpenSession, uuidA, 1, testGen)).Open()
	if err != nil || opened.Status() != aoe.OpenDone {
		f.Fatalf("OPEN: %v", err)
	}
	epoch, counter := opened.Epoch(), uint32(0)
	disk := make([]byte, 1<<20)

	for _, frame := range [][]byte{
		c.read(tag(epoch, 1<<20), 0, 1), c.write(tag(epoch, 1<<20), 0, block(1, 16)), c.flush(0), c.config(aoe.ConfigForceSet, "x"),
		c.mask(aoe.MaskEdit, aoe.Directive{Command: aoe.DirectiveAdd, MAC: macB}), c.reserve(aoe.ReserveSet, macB),
		c.openFrame(aoe.OpenSession, uuidA, 9, testGen), c.openFrame(aoe.CloseSession, uuidA, 1, testGen),
		c.ata(0, aoe.ATAFields{Flags: 0x41, Command: aoe.ATADataSetManagement, Feature: 1, Sectors: 1}, block(0xff, 1)),
		c.write(tag(epoch, 3000), 8, block(1, 1)), {},
	} {
		f.Add(frame, uint16(8), true)
		f.Add(frame, uint16(9), false)
	}
	f.Fuzz(func(t *testing.T, noise []byte, lba uint16, stranger bool) {
		noise = bytes.Clone(noise)
		if view := aoe.Frame(noise); stranger && len(noise) >= aoe.EthernetLen {
			view.SetSrc(macB)
		} else if len(noise) >= aoe.HeaderLen {
			outside(view, s.at(3))
		}
		exchange(noise)

		counter++
		at := uint64(lba) % (uint64(len(disk))/aoe.SectorSize - 1)
		data := block(byte(counter), 1)
		binary.BigEndian.PutUint32(data, counter)
		if answer := exchange(c.write(tag(epoch, counter), at, data)); answer == nil || answer.IsError() {
			t.Fatalf("write %d: % x", counter, []byte(answer))
		}
		copy(disk[at*aoe.SectorSize:], data)
		counter++
		first := at - min(at, 7)
		read, err := exchange(c.read(tag(epoch, counter), first, 8)).ATA()
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		got, err := read.Payload(8)
		if err != nil || !bytes.Equal(got, disk[first*aoe.SectorSize:][:8*aoe.SectorSize]) {
			t.Fatalf("8 sectors at %d have what the session did not write: %v", first, err)
		}
		if st := p.pool.Stats(); st.Free != st.Frames {
			t.Fatalf("%d of %d frames free", st.Free, st.Frames)
		}
	})
}

// outside makes a frame one that is of no session, though it may come from a sender that is admitted: who forges both is stopped by encryption only. Such
// a sender may well open sessions of its own; they must not be the fuzzed one's.
func outside(f aoe.Frame, l *lun) {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch := aoe.TagEpoch(f.Tag())
	for range aoe.MaxEpoch {
		if l.sessions[epoch] == nil {
			break
		}
		epoch = epoch%aoe.MaxEpoch + 1
	}
	switch {
	case l.sessions[epoch] != nil: // all are taken
		f.SetTag(f.Tag() &^ aoe.TagOwn)
	case epoch != aoe.TagEpoch(f.Tag()):
		f.SetTag(aoe.MakeTag(aoe.TagShard(f.Tag()), epoch, aoe.TagCounter(f.Tag())))
	}
	if o, err := f.Open(); err == nil && o.Initiator() == uuidA {
		o[8]++
	}
}
