package target

import (
	"slices"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// duplicateLifetime is how long the network may still deliver copies of a frame; an epoch rests that long.
	duplicateLifetime = time.Second
	// openPatience is how long OPEN waits for older writes before it answers "busy".
	openPatience = 500 * time.Millisecond
)

// session is what one initiator's OPEN began. All but the window is fixed; the LUN's mu guards the window.
type session struct {
	initiator   aoe.UUID
	incarnation uint64
	epoch       uint8
	node        string
	// cacheEpoch is the LUN's when the session began; a flush under an older one fails.
	cacheEpoch uint64
	window     window
}

// sessionOf finds the session of a frame by its tag; nil if there is none that this sender may use. The caller holds mu.
func (l *lun) sessionOf(src aoe.MAC, tag uint32) *session {
	if !aoe.IsSession(tag) {
		return nil
	}
	s := l.sessions[aoe.TagEpoch(tag)]
	if s == nil || l.node(src) != s.node {
		return nil
	}
	return s
}

// find is the live session of an initiator. The caller holds mu.
func (l *lun) find(initiator aoe.UUID) *session {
	for _, s := range l.sessions {
		if s != nil && s.initiator == initiator {
			return s
		}
	}
	return nil
}

// end makes a session's frames invalid, queued ones included. The caller holds mu.
func (l *lun) end(s *session) {
	l.sessions[s.epoch] = nil
	l.freed[s.epoch] = l.shelf.host.Now()
	l.rules++
}

// rest keeps all epochs from being used until frames of sessions that ended at a time are gone: those of another LUN, whose tags are no
// different.
func (l *lun) rest(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for epoch := range l.freed {
		l.freed[epoch] = since
	}
}

// freeEpoch is the next epoch that no live session and no frame still on its way can have; 0 if there is none now. The
// caller holds mu.
func (l *lun) freeEpoch(last uint8) uint8 {
	now := l.shelf.host.Now()
	epoch := last
	for range aoe.MaxEpoch {
		epoch = epoch%aoe.MaxEpoch + 1
		if l.sessions[epoch] == nil && (l.freed[epoch].IsZero() || now.Sub(l.freed[epoch]) >= duplicateLifetime) {
			return epoch
		}
	}
	return 0
}

// usedEpochs has a bit for each epoch that freeEpoch would refuse. The caller holds mu.
func (l *lun) usedEpochs() (bits uint64) {
	now := l.shelf.host.Now()
	for epoch := 1; epoch < len(l.sessions); epoch++ {
		if l.sessions[epoch] != nil || !l.freed[epoch].IsZero() && now.Sub(l.freed[epoch]) < duplicateLifetime {
			bits |= 1 << epoch
		}
	}
	return bits
}

// open answers an OPEN from src. What it answers is durable.
func (l *lun) open(src aoe.MAC, o aoe.Open) (aoe.OpenFields, error) {
	answer := aoe.OpenFields{Op: o.Op(), Initiator: o.Initiator(), Incarnation: o.Incarnation(), Generation: o.Generation()}
	l.control.Lock()
	defer l.control.Unlock()
	l.mu.Lock()
	node := l.node(src)
	answer.CacheEpoch = l.cacheEpoch
	l.mu.Unlock()
	switch {
	case l.access == OpenAccess:
		answer.Status = aoe.OpenNoSessions
	case node == "":
		answer.Status, answer.CacheEpoch = aoe.OpenNotAdmitted, 0
	case o.Generation().String() != l.generation:
		answer.Status, answer.CacheEpoch = aoe.OpenOtherGeneration, 0
	case o.Op() == aoe.CloseSession:
		return answer, l.closeSession(o)
	case o.Admission() != 0 && o.Admission() != l.rec.Load().Admission:
		answer.Status, answer.Admission = aoe.OpenOtherAdmission, l.rec.Load().Admission
	default:
		answer.Admission = l.rec.Load().Admission
		return answer, l.openSession(node, &answer)
	}
	return answer, nil
}

// openSession replaces the initiator's session by a new one. The caller holds control.
func (l *lun) openSession(node string, answer *aoe.OpenFields) error {
	l.mu.Lock()
	old := l.find(answer.Initiator)
	if old != nil && old.incarnation == answer.Incarnation && old.node == node {
		answer.Epoch, answer.CacheEpoch, answer.Window = old.epoch, old.cacheEpoch, replayWindow
		l.mu.Unlock()
		return nil
	}
	if answer.Incarnation < l.rec.Load().incarnation(answer.Initiator) {
		l.mu.Unlock()
		answer.Status = aoe.OpenStale
		return nil
	}
	if old != nil {
		l.end(old)
	}
	l.mu.Unlock()

	ctx, cancel := l.shelf.timeout(openPatience)
	defer cancel()
	if l.drain(ctx) != nil {
		answer.Status = aoe.OpenBusy
		return nil
	}
	l.mu.Lock()
	epoch := l.freeEpoch(l.rec.Load().LastEpoch)
	used := l.usedEpochs()
	l.mu.Unlock()
	if epoch == 0 {
		answer.Status = aoe.OpenNoEpoch
		return nil
	}
	err := l.save(func(rec *lunRecord) {
		rec.LastEpoch, rec.UsedEpochs = epoch, used|1<<epoch
		remember(rec, initiatorRecord{UUID: answer.Initiator, Node: node, Incarnation: answer.Incarnation})
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions[epoch] = &session{
		initiator: answer.Initiator, incarnation: answer.Incarnation, epoch: epoch, node: node, cacheEpoch: l.cacheEpoch,
	}
	answer.Epoch, answer.CacheEpoch, answer.Window = epoch, l.cacheEpoch, replayWindow
	return nil
}

// closeSession ends the session that the request names, if it is still there. A late copy of its OPEN is stale afterwards.
// The caller holds control.
func (l *lun) closeSession(o aoe.Open) error {
	l.mu.Lock()
	s := l.find(o.Initiator())
	if s == nil || s.incarnation != o.Incarnation() {
		l.mu.Unlock()
		return nil
	}
	l.end(s)
	used := l.usedEpochs()
	l.mu.Unlock()
	return l.save(func(rec *lunRecord) {
		rec.UsedEpochs = used
		remember(rec, initiatorRecord{UUID: s.initiator, Node: s.node, Incarnation: s.incarnation + 1})
	})
}

// maxInitiators is how many initiators a LUN remembers; beyond, the one that came first is forgotten.
const maxInitiators = 64

// remember replaces an initiator's record.
func remember(rec *lunRecord, r initiatorRecord) {
	rec.Initiators = slices.DeleteFunc(rec.Initiators, func(i initiatorRecord) bool { return i.UUID == r.UUID })
	if len(rec.Initiators) >= maxInitiators {
		rec.Initiators = slices.Delete(rec.Initiators, 0, 1)
	}
	rec.Initiators = append(rec.Initiators, r)
}
