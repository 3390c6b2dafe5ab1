package inband

import (
	"cmp"
	"slices"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Support is whether a target has an optional command.
type Support uint8

// What is known of it; silence counts as No.
const (
	Unknown Support = iota
	No
	Yes
)

// Answer is what a target said of itself over one path.
type Answer struct {
	Path
	BufferCount  int    // frames that it can hold
	SectorCount  int    // in a frame, at most
	Firmware     uint16 // of the config response
	ConfigString string

	// What IDENTIFY said; Sectors is 0 if it was not answered.
	Sectors       uint64 // of 512 bytes
	Model, Serial string
	Revision      string
	LBA48         bool
	FlushClaimed  bool // quirks say whether that can be believed
	Trim          bool
	TrimZeroes    bool // trimmed sectors read as zeroes

	// What was found out by asking; Unknown if it was not.
	Reserve, Mask    Support
	Reserved, Masked []aoe.MAC
}

// parseAnswer takes a config response.
func parseAnswer(ifname string, f aoe.Frame) (Answer, bool) {
	config, err := f.Config()
	if err != nil {
		return Answer{}, false
	}
	text, err := config.ConfigString()
	if err != nil {
		return Answer{}, false
	}
	return Answer{
		Path:        Path{Addr: f.Addr(), Interface: ifname, MAC: f.Src()},
		BufferCount: int(config.BufferCount()), SectorCount: config.SectorCount(), Firmware: config.Firmware(), ConfigString: string(text),
	}, true
}

// identify adds what IDENTIFY said.
func (a *Answer) identify(id aoe.Identify) {
	a.Sectors, a.Model, a.Serial, a.Revision = id.Sectors(), id.Model(), id.Serial(), id.Firmware()
	a.LBA48, a.FlushClaimed = id.LBA48(), id.Flush() || id.FlushExt()
	a.Trim, a.TrimZeroes = id.Trim(), id.TrimZeroes()
}

// Target is everybody who answers at one address.
type Target struct {
	Addr    aoe.Addr
	Answers []Answer // one per path, in the order of interfaces and MACs
	// Conflict says why the address cannot be used: more than one target answers there. Empty: one does.
	Conflict string
}

// Targets puts answers together, in the order of addresses. Two targets at one address cannot be told apart by those who use them, so
// such an address is marked and must not be used.
func Targets(answers []Answer) []Target {
	answers = slices.Clone(answers)
	slices.SortFunc(answers, compare)
	var all []Target
	for _, a := range answers {
		if n := len(all); n == 0 || all[n-1].Addr != a.Addr {
			all = append(all, Target{Addr: a.Addr})
		}
		last := &all[len(all)-1]
		last.Answers = append(last.Answers, a)
	}
	for i := range all {
		all[i].Conflict = conflict(all[i].Answers)
	}
	return all
}

func compare(a, b Answer) int {
	return cmp.Or(cmp.Compare(a.Addr.Shelf, b.Addr.Shelf), cmp.Compare(a.Addr.Slot, b.Addr.Slot),
		cmp.Compare(a.Interface, b.Interface), slices.Compare(a.MAC[:], b.MAC[:]))
}

// conflict says why answers cannot be one target's.
func conflict(answers []Answer) string {
	first := answers[0]
	for _, a := range answers[1:] {
		for _, differ := range []struct {
			what string
			do   bool
		}{
			{"serial number", a.Serial != first.Serial},
			{"model", a.Model != first.Model},
			{"size", a.Sectors != first.Sectors},
			{"config string", a.ConfigString != first.ConfigString},
		} {
			if differ.do && a.Sectors > 0 && first.Sectors > 0 {
				return "two targets have this address, their " + differ.what + " differs: " + first.where() + " and " + a.where()
			}
		}
		if a.MAC != first.MAC && QuirksOf(first).OnePort {
			return "two targets have this address, since each of this kind has one port: " + first.where() + " and " + a.where()
		}
	}
	return ""
}

func (a Answer) where() string { return a.MAC.String() + " on " + a.Interface }
