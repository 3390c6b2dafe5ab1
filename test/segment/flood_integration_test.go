//go:build integration

package segment

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

const (
	floodTime = 5 * time.Second
	floodRate = 3000 // frames of each kind a second
	// memorySlack is what a process's memory may differ by without having grown, in KiB.
	memorySlack = 8 << 10
	// logLines is how much a process may log of a flood: each message has its own limit of one in ten seconds.
	logLines = 20
)

// TestFlood: malformed, oversized, forged and spoofed frames at initiator and target, beside a verified load. It goes on, nothing forged gets through, no memory
// is eaten and no log filled.
func TestFlood(t *testing.T) {
	hub, other := newSegment(t, "hub"), newSegment(t, "other")
	storage := hub.host("target", "t")
	node := hub.host("node", "a", other)
	attacker := hub.host("attacker", "x", other)
	storage.call("Admit", target.Admission{Node: "node-a", MACs: node.macs}, new(target.LUN))
	node.call("Attach", struct{}{}, nil)
	node.call("Load", struct{}{}, nil)

	load := func(during func()) (perSecond float64) {
		var before, after uint64
		node.call("Loaded", struct{}{}, &before)
		began := time.Now()
		during()
		node.call("Loaded", struct{}{}, &after)
		return float64(after-before) / time.Since(began).Seconds()
	}
	load(func() { time.Sleep(time.Second) }) // until all that is pre-allocated was touched
	calm := load(func() { time.Sleep(2 * time.Second) })

	var served, servedLater target.Stats
	var seen, seenLater initiator.Stats
	storage.call("Stats", struct{}{}, &served)
	node.call("Stats", struct{}{}, &seen)
	memory := [2]int{storage.memory(), node.memory()}
	lines := [2]int{storage.log.lines(), node.log.lines()}
	sent := map[string]uint64{}
	flooded := load(func() {
		attacker.call("Flood", FloodArgs{
			Target: storage.macs[0], Initiator: node.macs[0], Second: node.macs[1], Duration: floodTime, Rate: floodRate,
		}, &sent)
	})
	storage.call("Stats", struct{}{}, &servedLater)
	node.call("Stats", struct{}{}, &seenLater)
	logged := [2]int{storage.log.lines() - lines[0], node.log.lines() - lines[1]}
	grown := [2]int{storage.memory() - memory[0], node.memory() - memory[1]}
	var ops uint64
	node.call("Unload", struct{}{}, &ops) // an error of it is a mismatch or a request that failed
	node.call("Detach", struct{}{}, nil)

	total := uint64(0)
	for _, name := range slices.Sorted(maps.Keys(sent)) {
		figure(t, "%d %s", sent[name], name)
		total += sent[name]
	}
	rejected, refused := seenLater.Rejected-seen.Rejected, servedLater.Refused-served.Refused
	figure(t, "%d frames in %v: %.0f of %.0f verified operations a second were left (%.0f %%), no mismatch, no error", total, floodTime, flooded, calm, 100*flooded/calm)
	figure(t, "the initiator rejected %d frames; the target refused %d, called %d malformed, and dropped %d", rejected, refused, servedLater.Malformed-served.Malformed, servedLater.Dropped-served.Dropped)
	figure(t, "memory grew by %d KiB (target) and %d KiB (initiator); %d and %d lines were logged", grown[0], grown[1], logged[0], logged[1])

	for name, n := range sent {
		if n < 100 {
			t.Errorf("only %d %s: this shows nothing", n, name)
		}
	}
	// What the receiving sockets had no room for is lost, in a flood.
	if least := sent["answers with the right tag from another MAC"] / 4; rejected < least {
		t.Errorf("the initiator rejected %d frames, want %d at least", rejected, least)
	}
	if least := sent["requests of a stranger"] / 4; refused < least {
		t.Errorf("the target refused %d frames, want %d at least", refused, least)
	}
	if flooded < calm/50 {
		t.Errorf("%.0f operations a second are left of %.0f", flooded, calm)
	}
	for i, who := range []string{"target", "initiator"} {
		if grown[i] > memorySlack {
			t.Errorf("the %s's memory grew by %d KiB", who, grown[i])
		}
		if logged[i] > logLines {
			t.Errorf("the %s logged %d lines", who, logged[i])
		}
	}
}
