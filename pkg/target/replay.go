package target

// A session's anti-replay window: which of the newest counters were seen, and how each ended. A write whose counter is here
// already is not executed again, whatever the network or a retransmission does.

const (
	// replayWindow is W: the counters of all outstanding frames of a session lie within it.
	replayWindow = 4096
	// counterBits is the width of a tag's counter, which wraps around.
	counterBits = 22
	counterMask = 1<<counterBits - 1
)

// outcome is what is known about one counter.
type outcome uint8

const (
	unseen outcome = iota
	running
	// Finished ones carry the answer.
	doneOK
	doneBadRange   // ATA: LBA out of range
	doneAborted    // ATA: command aborted
	doneFailed     // ATA: device fault
	doneUnreadable // ATA: uncorrectable
	doneBadArg     // AoE: bad argument
)

// finished says whether the answer is known.
func (o outcome) finished() bool { return o >= doneOK }

// window is one session's. The zero value has seen nothing. Not safe for concurrent use.
type window struct {
	started bool
	newest  uint32
	seen    [replayWindow]outcome
}

// distance is how far counter lies past newest, negative if before; counters wrap around, so half the space is past.
func distance(newest, counter uint32) int {
	d := int32((counter-newest)<<(32-counterBits)) >> (32 - counterBits)
	return int(d)
}

// look moves the window up to counter and returns what is known about it; ok is false if it is older than the window.
func (w *window) look(counter uint32) (known outcome, ok bool) {
	if !w.started {
		w.started, w.newest = true, counter
		return unseen, true
	}
	ahead := distance(w.newest, counter)
	switch {
	case ahead <= -replayWindow:
		return unseen, false
	case ahead >= replayWindow:
		w.seen = [replayWindow]outcome{}
		w.newest = counter
	case ahead > 0:
		for c := w.newest + 1; c != w.newest+uint32(ahead)+1; c++ {
			w.seen[c%replayWindow] = unseen
		}
		w.newest = counter
	}
	return w.seen[counter%replayWindow], true
}

// set records what is known about a counter, unless the window has moved past it.
func (w *window) set(counter uint32, o outcome) {
	if d := distance(w.newest, counter); d > 0 || d <= -replayWindow {
		return
	}
	w.seen[counter%replayWindow] = o
}
