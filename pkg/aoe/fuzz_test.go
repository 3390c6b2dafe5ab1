package aoe

import (
	"bytes"
	"testing"
)

// seed gives a fuzzer every captured frame, whole and cut.
func seed(f *testing.F) {
	for _, file := range []string{"kernel", "vblade"} {
		for _, frame := range golden(f, file) {
			f.Add([]byte(frame))
			f.Add([]byte(frame[:min(len(frame), 30)]))
		}
	}
}

// FuzzFrame reads whatever bytes through every view, and builds what it read again: the same bytes must come out, but for
// fields that senders have to leave zero and what lies behind the message.
func FuzzFrame(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := ParseFrame(b)
		if err != nil {
			return
		}
		before := bytes.Clone(b)
		h := Header{Dst: frame.Dst(), Src: frame.Src(), Response: frame.IsResponse(), Error: frame.ErrorCode(), Addr: frame.Addr(), Tag: frame.Tag()}
		built := make([]byte, len(b)+IdentifyLen)
		n := rebuild(t, built, &h, frame)
		if !bytes.Equal(b, before) {
			t.Fatal("reading changed the frame")
		}
		if n == 0 {
			return
		}
		again, err := ParseFrame(built[:n])
		if err != nil {
			t.Fatalf("built what cannot be read: %v", err)
		}
		second := make([]byte, len(built))
		if m := rebuild(t, second, &h, again); m != n || !bytes.Equal(second[:m], built[:n]) {
			t.Fatalf("built twice\n first %x\nsecond %x", built[:n], second[:m])
		}
		sameFields(t, frame, again, n)
	})
}

// sameFields compares where a frame's message has bytes that mean something.
func sameFields(t *testing.T, a, b Frame, n int) {
	t.Helper()
	if !bytes.Equal(a[:14], b[:14]) || !bytes.Equal(a[15:HeaderLen], b[15:HeaderLen]) || a.IsResponse() != b.IsResponse() {
		t.Fatalf("headers\n %x\n %x", a[:HeaderLen], b[:HeaderLen])
	}
	if a.Command() == CommandATA && !bytes.Equal(a[24:31], b[24:31]) {
		t.Fatalf("registers\n %x\n %x", a[24:n], b[24:n])
	}
	if a.Command() == CommandReserve && !bytes.Equal(a[24:n], b[24:n]) {
		t.Fatalf("reservations\n %x\n %x", a[24:n], b[24:n])
	}
}

// rebuild returns 0 for a frame that no view takes.
func rebuild(t *testing.T, b []byte, h *Header, f Frame) int {
	t.Helper()
	if a, err := f.ATA(); err == nil {
		if d, err := ParseIdentify(a.Data()); err == nil {
			readIdentify(t, d)
		}
		if data, err := a.Payload(a.Sectors()); err == nil {
			for i := range TrimEntries(data).Len() {
				TrimEntries(data).Entry(i)
			}
		}
		return PutATA(b, h, &ATAFields{Flags: a.Flags(), Feature: a.Feature(), Sectors: uint8(a.Sectors()), Command: a.Command(), LBA: a.LBA(), Device: a[7]})
	}
	if c, err := f.Config(); err == nil {
		s, err := c.ConfigString()
		if err != nil {
			return 0
		}
		return PutConfig(b, h, &ConfigFields{BufferCount: c.BufferCount(), Firmware: c.Firmware(), SectorCount: uint8(c.SectorCount()), Command: c.Command(), ConfigString: s})
	}
	if m, err := f.MACMask(); err == nil {
		if m.Error() != MaskNoError {
			return PutMACMaskFailed(b, h, m.Error(), m.Count())
		}
		var list []Directive
		for i := range m.Count() {
			list = append(list, m.Directive(i))
		}
		return PutMACMask(b, h, m.Command(), list)
	}
	if r, err := f.Reserve(); err == nil {
		var list []MAC
		for i := range r.Count() {
			list = append(list, r.MAC(i))
		}
		return PutReserve(b, h, r.Command(), list)
	}
	if o, err := f.Open(); err == nil {
		return PutOpen(b, h, &OpenFields{o.Op(), o.Status(), o.Epoch(), o.Initiator(), o.Incarnation(), o.Generation(), o.CacheEpoch(), o.Window(), o.Admission()})
	}
	return 0
}

// readIdentify checks the promises of the accessors on any data.
func readIdentify(t *testing.T, d Identify) {
	t.Helper()
	for _, s := range []string{d.Serial(), d.Model(), d.Firmware()} {
		for _, c := range []byte(s) {
			if c < ' ' || c > '~' {
				t.Fatalf("unprintable %q", s)
			}
		}
	}
	if d.Sectors() >= 1<<48 || d.QueueDepth() < 1 || d.QueueDepth() > 32 || d.TrimBlocks() < 1 || d.PhysicalSectorSize() < SectorSize {
		t.Fatalf("%d sectors, depth %d, trim %d, physical %d", d.Sectors(), d.QueueDepth(), d.TrimBlocks(), d.PhysicalSectorSize())
	}
	d.ChecksumValid()
}

// FuzzParseAddr: what is accepted has one spelling.
func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"e7.3", "e65534.254", "e07.3", "e7", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddr(s); err == nil && (a.String() != s || a.IsWild()) {
			t.Fatalf("%q was read as %v", s, a)
		}
	})
}

// FuzzParseClaim: what is read is written again as something that is read the same.
func FuzzParseClaim(f *testing.F) {
	for _, s := range []string{
		"aoe-csi/1 abcdefghijklmnop default/claim", "aoe-csi/1 abcdefghijklmnop - scrubbed=77", "aoe-csi/1 abcdefghijklmnop a scrubbed=", "aoe-csi:abcdefghijklmnop", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseClaim(s)
		if err != nil {
			return
		}
		again, err := ParseClaim(c.String())
		if err != nil || again.Generation != c.Generation || again.Scrubbed != c.Scrubbed {
			t.Fatalf("%q is %+v, then %+v: %v", s, c, again, err)
		}
	})
}

// FuzzParseMAC: what is accepted has one meaning.
func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:aa:00:01", "52-54-00-AA-00-01", "525400aa0001", "52:54:00:aa:00", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := ParseMAC(s); err == nil {
			if again, err := ParseMAC(m.String()); err != nil || again != m {
				t.Fatalf("%q is %v, then %v: %v", s, m, again, err)
			}
		}
	})
}
