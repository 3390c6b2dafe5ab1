package aoe

import "testing"

// Every view, builder and refusal that a data path meets.
func TestNothingIsAllocated(t *testing.T) {
	frames := golden(t, "vblade")
	b := make([]byte, 4096)
	payload := make([]byte, SectorSize)
	var sink uint64
	tests := map[string]func(){
		"write": func() {
			h := Header{Dst: testDst, Src: testSrc, Addr: Addr{7, 3}, Tag: MakeTag(1, 2, 3)}
			n := PutATA(b, &h, &ATAFields{Flags: ATAExtended | ATAWrite, Sectors: 1, Command: ATAWriteExt, LBA: 99})
			sink += uint64(Pad(b, n+copy(b[n:], payload)))
		},
		"read answer": func() {
			f, err := ParseFrame(frames["read-ext-answer"])
			if err != nil {
				t.Fatal(err)
			}
			a, err := f.ATA()
			if err != nil || !f.IsResponse() || f.Addr() != (Addr{7, 3}) || f.Src() != testDst || StatusFailed(a.Status()) {
				t.Fatal(err)
			}
			data, err := a.Payload(2)
			if err != nil {
				t.Fatal(err)
			}
			sink += uint64(f.Tag()) + a.LBA() + uint64(data[0])
		},
		"reply": func() {
			f := frames["read-ext"]
			sink += uint64(PutATAReply(b, f, testDst, Addr{7, 3}, StatusDRDY, 0) + PutReply(b, f, testDst, Addr{7, 3}, ErrorUnavailable))
		},
		"config": func() {
			c, err := frames["config-set-answer"].Config()
			if err != nil {
				t.Fatal(err)
			}
			s, err := c.ConfigString()
			if err != nil {
				t.Fatal(err)
			}
			sink += uint64(PutConfig(b, &Header{}, &ConfigFields{ConfigString: s, BufferCount: c.BufferCount()}))
		},
		"OPEN": func() {
			PutOpen(b, &Header{}, &OpenFields{Incarnation: 7})
			o, err := Frame(b).Open()
			if err != nil {
				t.Fatal(err)
			}
			sink += o.Incarnation()
		},
		"lists": func() {
			m, err := frames["mask-add-answer"].MACMask()
			if err != nil {
				t.Fatal(err)
			}
			r, err := frames["reserve-refused-answer"].Reserve()
			if err != nil {
				t.Fatal(err)
			}
			sink += uint64(m.Directive(1).MAC[5]) + uint64(r.MAC(0)[5])
		},
		"identify": func() {
			PutIdentify(b, &IdentifyFields{Serial: "abc", Sectors: 5, Flush: true})
			if d := Identify(b[:IdentifyLen]); !d.HasSerial("abc") || d.Sectors() != 5 || !d.Flush() {
				t.Fatal("read back")
			}
		},
		"trim": func() { sink += PutTrim(payload, 1, 1<<20) },
		"refusals": func() {
			whole := frames["config-set"]
			if _, err := ParseFrame(whole[:20]); err == nil {
				t.Fatal("20 bytes are a frame")
			}
			if _, err := whole.ATA(); err == nil {
				t.Fatal("a config frame is an ATA frame")
			}
			if _, err := whole[:30].Config(); err == nil {
				t.Fatal("30 bytes are a config frame")
			}
			if c, err := whole[:34].Config(); err != nil {
				t.Fatal(err)
			} else if _, err := c.ConfigString(); err == nil {
				t.Fatal("2 bytes of a string of 5")
			}
		},
	}
	for name, do := range tests {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if sink == 0 {
		t.Error("nothing was done")
	}
}

func BenchmarkPutWrite(b *testing.B) {
	buf := make([]byte, ATALen)
	h := Header{Dst: testDst, Src: testSrc, Addr: Addr{7, 3}}
	r := ATAFields{Flags: ATAExtended | ATAWrite, Sectors: 16, Command: ATAWriteExt}
	b.ReportAllocs()
	for b.Loop() {
		h.Tag++
		r.LBA += 16
		PutATA(buf, &h, &r)
	}
}

func BenchmarkParseAnswer(b *testing.B) {
	frame := golden(b, "vblade")["read-ext-answer"]
	b.ReportAllocs()
	for b.Loop() {
		f, err := ParseFrame(frame)
		if err != nil {
			b.Fatal(err)
		}
		a, err := f.ATA()
		if err != nil || StatusFailed(a.Status()) {
			b.Fatal(err)
		}
		if _, err := a.Payload(2); err != nil {
			b.Fatal(err)
		}
	}
}
