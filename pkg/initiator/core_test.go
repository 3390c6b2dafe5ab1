package initiator

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link/linktest"
)

var lan = linktest.Profile{Delay: 50 * time.Microsecond, Jitter: 20 * time.Microsecond}

func TestAttachManaged(t *testing.T) {
	w := newWorld(t, 1, lan, nil)
	w.attach()
	info := w.core.Info()
	if !info.Session || !info.Flush || !info.FUA || !info.Trim || info.Serial != testGeneration || info.Sectors != 2048 || info.PhysicalBlock != 4096 {
		t.Errorf("info %+v", info)
	}
	if w.now > 50*time.Millisecond {
		t.Errorf("attach took %v on an idle network", w.now)
	}
	paths := w.core.Paths(nil)
	if len(paths) != 1 || paths[0].State != PathUp || paths[0].MaxSectors != 17 || paths[0].MAC != targetMAC || paths[0].RTT == 0 {
		t.Errorf("paths %+v", paths)
	}
	if s := w.core.State(); s.Phase != PhaseLive || s.CacheEpoch != 1 || s.Incarnation != 100 {
		t.Errorf("state %+v", s)
	}
}

func TestDataComeBack(t *testing.T) {
	for _, tc := range []struct {
		name    string
		lba     uint64
		sectors int
		frames  int // of the write
	}{
		{"one sector", 5, 1, 1},
		{"a page", 8, 8, 1},
		{"128 KiB", 256, 256, 16},
		{"torn only at pages", 3, 32, 3}, // 3–16, 16–32, 32–35
		{"the last", 2047, 1, 1},
		{"all", 0, 2048, 128},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 2, lan, nil)
			w.attach()
			data := pattern(byte(tc.sectors), tc.sectors)
			if err := w.write(tc.lba, data); err != nil {
				t.Fatal(err)
			}
			if w.target.executed != tc.frames {
				t.Errorf("write took %d frames, want %d", w.target.executed, tc.frames)
			}
			if !bytes.Equal(w.target.disk[tc.lba*aoe.SectorSize:][:len(data)], data) {
				t.Error("the disk has other data")
			}
			got, err := w.read(tc.lba, tc.sectors)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read back: %v, equal %v", err, bytes.Equal(got, data))
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	page := make([]byte, 4096)
	for _, tc := range []struct {
		name string
		r    Request
		cfg  func(*CoreConfig)
		want error
	}{
		{"beyond the end", Request{Op: OpRead, LBA: 2041, Sectors: 8, Data: page}, nil, ErrIO},
		{"LBA that wraps around", Request{Op: OpRead, LBA: ^uint64(0) - 3, Sectors: 8, Data: page}, nil, ErrIO},
		{"no sectors", Request{Op: OpRead, Data: page}, nil, ErrIO},
		{"too little data", Request{Op: OpWrite, Sectors: 9, Data: page}, nil, ErrIO},
		{"write to read-only", Request{Op: OpWrite, Sectors: 8, Data: page}, func(c *CoreConfig) { c.ReadOnly = true }, ErrReadOnly},
		{"trim of read-only", Request{Op: OpTrim, Sectors: 8}, func(c *CoreConfig) { c.ReadOnly = true }, ErrReadOnly},
		{"flush when data are lost", Request{Op: OpFlush}, func(c *CoreConfig) { c.Lost = true }, ErrLost},
		{"write when data are lost", Request{Op: OpWrite, Sectors: 8, Data: page}, func(c *CoreConfig) { c.Lost = true }, ErrLost},
		{"FUA write when data are lost", Request{Op: OpWrite, FUA: true, Sectors: 8, Data: page}, func(c *CoreConfig) { c.Lost = true }, ErrLost},
		{"trim when data are lost", Request{Op: OpTrim, Sectors: 8}, func(c *CoreConfig) { c.Lost = true }, ErrLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 3, lan, tc.cfg)
			w.attach()
			if err := w.do(&tc.r); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if w.core.Pending() != 0 || w.core.Stats().Errors != 1 {
				t.Errorf("pending %d, stats %+v", w.core.Pending(), w.core.Stats())
			}
		})
	}
}

func TestTrimAndFUA(t *testing.T) {
	w := newWorld(t, 4, lan, nil)
	w.attach()
	if err := w.do(&Request{Op: OpWrite, FUA: true, Sectors: 64, Data: pattern(9, 64)}); err != nil {
		t.Fatal(err)
	}
	if err := w.do(&Request{Op: OpTrim, LBA: 8, Sectors: 16}); err != nil {
		t.Fatal(err)
	}
	got, err := w.read(0, 64)
	want := pattern(9, 64)
	clear(want[8*aoe.SectorSize : 24*aoe.SectorSize])
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("after trim: %v, equal %v", err, bytes.Equal(got, want))
	}
}

func TestForeignFlush(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*modelTarget)
		want    bool
	}{
		{"vblade answers but does not sync", func(m *modelTarget) { m.asVblade() }, false},
		{"another that serves FLUSH EXT", func(m *modelTarget) { m.asVblade(); m.model = "disk"; m.flush = []aoe.ATACommand{aoe.ATAFlushExt} }, true},
		{"another that serves FLUSH", func(m *modelTarget) { m.asVblade(); m.model = "disk" }, true},
		{"another without a flush", func(m *modelTarget) { m.asVblade(); m.model = "disk"; m.flush = nil }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 5, lan, func(c *CoreConfig) { c.Generation = "" })
			tc.prepare(w.target)
			w.attach()
			if info := w.core.Info(); info.Flush != tc.want || info.Session {
				t.Errorf("info %+v", info)
			}
			before := w.target.flushes
			if err := w.flush(); err != nil {
				t.Error(err)
			}
			if sent := w.target.flushes > before; sent != tc.want {
				t.Errorf("flush was sent: %v", sent)
			}
		})
	}
}

func TestAttachRefused(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*modelTarget)
		want    error
	}{
		{"another serial number", func(m *modelTarget) { m.serial = "qrstuvwxyz234567" }, ErrIdentity},
		{"another config string", func(m *modelTarget) { m.config = "aoe-csi:qrstuvwxyz234567" }, ErrIdentity},
		{"no config string", func(m *modelTarget) { m.config = "" }, ErrIdentity},
		{"not admitted", func(m *modelTarget) { m.admitted = false }, ErrNotAdmitted},
		{"nobody there", func(m *modelTarget) { m.off = true }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 6, lan, nil)
			tc.prepare(w.target)
			if w.until(5*time.Second, w.core.Ready) {
				t.Fatal("attached")
			}
			if _, err := w.core.Refusal(); !errors.Is(err, tc.want) {
				t.Errorf("refusal %v, want %v", err, tc.want)
			}
			if w.target.seenFrames > 200 {
				t.Errorf("%d frames in 5 s", w.target.seenFrames)
			}
			if w.target.executed > 0 {
				t.Error("something was written")
			}
		})
	}
}
