package sim

import (
	"fmt"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// tap writes a line of the trace for a frame that is sent.
func (s *Sim) tap(b []byte) bool {
	f, err := aoe.ParseFrame(b)
	if err != nil {
		s.tracef("frame %x", b[:min(len(b), 40)])
		return true
	}
	s.tracef("%s > %s %s", f.Src(), f.Dst(), describe(f))
	return true
}

// describe is a frame in words.
func describe(f aoe.Frame) string {
	kind := "request"
	switch {
	case f.IsError():
		kind = "refused: " + f.ErrorCode().String()
	case f.IsResponse():
		kind = "answer"
	}
	text := fmt.Sprintf("%s %s %s tag %08x", f.Addr(), f.Command(), kind, f.Tag())
	if f.IsError() {
		return text
	}
	if a, err := f.ATA(); err == nil && f.Command() == aoe.CommandATA {
		if f.IsResponse() {
			return text + fmt.Sprintf(" status %02x error %02x, %d bytes", a.Status(), a.Error(), len(f))
		}
		return text + fmt.Sprintf(" command %02x lba %d sectors %d, %d bytes", uint8(a.Command()), a.LBA(), a.Sectors(), len(f))
	}
	if o, err := f.Open(); err == nil && f.Command() == aoe.CommandOpen {
		return text + fmt.Sprintf(" op %d status %s epoch %d incarnation %d cache %x", o.Op(), o.Status(), o.Epoch(), o.Incarnation(), o.CacheEpoch())
	}
	return text
}
