package inband

import (
	"strings"
	"time"
)

// Quirks is how a kind of target differs from the protocol's text.
type Quirks struct {
	Name   string
	Tested bool // against the real thing; else from public sources
	// OnePort: an instance serves one interface, so that a second MAC is a second instance, with lists of its own.
	OnePort bool
	// Forgets: config string, reservation and masks are gone when it restarts.
	Forgets bool
	// FlushLies: a flush is answered without anything being made durable.
	FlushLies bool
	// FrameByMTU: it takes as many sectors in a frame as its own MTU has room for, and that may change while it runs.
	FrameByMTU bool
	// ExitsOnErrors: the process ends when a frame cannot be sent; something has to start it again.
	ExitsOnErrors bool
	// Drain is how long commands that it took before a reservation may still be executed after it; 0: it works them off in their order.
	Drain time.Duration
}

// quirks is the table; the first row that recognises the target counts. docs/existing-storage.md shows it.
var quirks = []struct {
	model string // part of IDENTIFY's model, in lower case
	Quirks
}{
	{"kvblade", Quirks{Name: "kvblade", Forgets: true, FlushLies: true, Drain: 2 * time.Second}},
	{"vblade", Quirks{Name: "vblade", Tested: true, OnePort: true, Forgets: true, FlushLies: true, FrameByMTU: true, ExitsOnErrors: true}},
	{"ggaoed", Quirks{Name: "ggaoed", Drain: 2 * time.Second}},
	{"coraid", Quirks{Name: "Coraid", Drain: 2 * time.Second}},
	{"", Quirks{Name: "unknown", Drain: 2 * time.Second}},
}

// QuirksOf recognises a target by what it says in IDENTIFY.
func QuirksOf(a Answer) Quirks {
	model := strings.ToLower(a.Model)
	for _, q := range quirks {
		if strings.Contains(model, q.model) {
			return q.Quirks
		}
	}
	return Quirks{} // the last row recognises everything
}
