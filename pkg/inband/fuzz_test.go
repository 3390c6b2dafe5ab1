package inband

import (
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// FuzzAnswers puts together what anybody may have answered: each address once, each answer under its own.
func FuzzAnswers(f *testing.F) {
	b := make([]byte, 256)
	h := aoe.Header{Dst: aoe.MAC{2}, Src: aoe.MAC{4}, Response: true, Addr: aoe.Addr{Shelf: 7, Slot: 3}}
	n := aoe.PutConfig(b, &h, &aoe.ConfigFields{BufferCount: 16, SectorCount: 2, ConfigString: []byte("aoe-csi/1 abcdefghijklmnop default/claim")})
	identify := make([]byte, aoe.IdentifyLen)
	aoe.PutIdentify(identify, &aoe.IdentifyFields{Serial: "7.3:host", Model: "Coraid EtherDrive vblade", Sectors: 1 << 20, Flush: true, TrimBlocks: 1})
	f.Add(b[:n], b[:n], identify)
	f.Add(b[:n], b[:40], []byte{})
	f.Fuzz(func(t *testing.T, first, second, identify []byte) {
		var answers []Answer
		for _, raw := range [][]byte{first, second} {
			frame, err := aoe.ParseFrame(raw)
			if err != nil {
				continue
			}
			a, ok := parseAnswer("eth0", frame)
			if !ok {
				continue
			}
			if id, err := aoe.ParseIdentify(identify); err == nil {
				a.identify(id)
			}
			answers = append(answers, a)
		}
		n := 0
		seen := map[aoe.Addr]bool{}
		for _, target := range Targets(answers) {
			if seen[target.Addr] {
				t.Fatalf("%v twice", target.Addr)
			}
			seen[target.Addr] = true
			for _, a := range target.Answers {
				if a.Addr != target.Addr {
					t.Fatalf("answer of %v under %v", a.Addr, target.Addr)
				}
				QuirksOf(a)
				n++
			}
		}
		if n != len(answers) {
			t.Fatalf("%d of %d answers", n, len(answers))
		}
	})
}
