package target

import (
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// IDENTIFY strings.
const (
	firmwareName = "aoecsi1"
	modelName    = "aoe-csi LUN"
	// trimBlocks is how many sectors of ranges one TRIM may carry: more does not fit the smallest frame.
	trimBlocks = 2
	// queueDepth is the most that IDENTIFY can say.
	queueDepth = 32
)

// ata judges an ATA command and answers it, hands it to a worker, or drops it.
func (p *port) ata(l *lun, f aoe.Frame) {
	a, err := f.ATA()
	if err != nil {
		p.malformed(f, err)
		return
	}
	if carriesData(a.Command()) {
		// Cut short on the way: an answer would be the command's end, but its whole copy may come yet.
		if _, err := a.Payload(a.Sectors()); err != nil {
			p.malformed(f, err)
			return
		}
	}
	j := p.borrow(f, aoe.ATALen) // most writes need no copy of their data
	if j == nil {
		return
	}
	j.lun = l
	// Writes take effect in the order in which they came where nothing else keeps a late duplicate from overwriting newer data.
	ordered := l.access == OpenAccess && carriesData(a.Command())
	if ordered && !plainWrite(a.Command()) {
		p.serveStaged() // a worker has it at once
	}
	p.hold(l, ordered)
	switch p.judge(l, j, a) {
	case answerNow:
		p.emit(j)
	case tryCached:
		p.serveNow(l, j, a)
	case isLent:
	}
}

// verdict is what happens to a job after judge.
type verdict uint8

const (
	answerNow verdict = iota // with its reply, if it has one
	isLent                   // a worker has it
	tryCached                // it may need no disk
)

// judge decides under the LUN's mu: who may, what was seen before, and which queue.
func (p *port) judge(l *lun, j *job, a aoe.ATA) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.visible(j.src) {
		p.shelf.counts.refused.Add(1)
		return answerNow
	}
	j.rules, j.sectors = l.rules, l.sectors
	if a.Command() == aoe.ATAIdentify {
		j.identify(a)
		return answerNow
	}
	code := aoe.ErrorUnavailable
	if !l.offline {
		if l.access == ManagedAccess {
			j.session = l.sessionOf(j.src, j.request().Tag())
		}
		code = l.mayRun(j.src, j.session)
	}
	if code != aoe.NoError {
		p.shelf.counts.refused.Add(1)
		j.refuse(code)
		return answerNow
	}
	if j.session != nil && !p.isNew(j, a) {
		return answerNow
	}
	return p.route(l, j, a)
}

// isNew moves the session's window and says whether the command is to be executed. If not, the job has the answer that
// was given before, or none while the first copy is still running. The caller holds the LUN's mu.
func (p *port) isNew(j *job, a aoe.ATA) bool {
	j.counter = aoe.TagCounter(j.request().Tag())
	known, ok := j.session.window.look(j.counter)
	if changes(a.Command()) {
		j.tracked = true
		switch {
		case !ok:
			p.shelf.counts.stale.Add(1)
			return false
		case known == unseen:
			return true
		case known.finished():
			j.answer(known, 0)
		}
		p.shelf.counts.replayed.Add(1)
		return false
	}
	return true // executing it twice changes nothing
}

// carriesData says whether the sectors of a command are data that come with it.
func carriesData(c aoe.ATACommand) bool { return c.IsWrite() || c == aoe.ATADataSetManagement }

// plainWrite says whether a command is a write that need not be durable when it is answered.
func plainWrite(c aoe.ATACommand) bool { return c.IsWrite() && c != aoe.ATAWriteDMAFUAExt }

// changes says whether a second execution of a command could do harm, or costs as much as a flush.
func changes(c aoe.ATACommand) bool {
	return carriesData(c) || c == aoe.ATAFlush || c == aoe.ATAFlushExt
}

// route picks what runs a command. The caller holds the LUN's mu.
func (p *port) route(l *lun, j *job, a aoe.ATA) verdict {
	queue := l.jobs
	switch c := a.Command(); {
	case c.IsRead():
		if o := readable(j, a); o != unseen {
			j.answer(o, 0)
			return answerNow
		}
		return tryCached
	case plainWrite(c) && l.behind == 0:
		if o := writable(j, a); o != unseen {
			j.answer(o, 0)
			if j.tracked {
				j.session.window.set(j.counter, o)
			}
			return answerNow
		}
		if j.tracked {
			j.session.window.set(j.counter, running) // for a copy that another port gets meanwhile
		}
		return tryCached
	case c.IsWrite(), c == aoe.ATADataSetManagement:
		queue = l.writes()
	case c == aoe.ATAFlush, c == aoe.ATAFlushExt, c == aoe.ATAReadVerify, c == aoe.ATAReadVerifyExt:
	case c == aoe.ATACheckPowerMode:
		j.powerMode()
		return answerNow
	default:
		j.answer(doneAborted, 0)
		return answerNow
	}
	if !p.lend(j, queue) {
		return answerNow
	}
	l.noteLent(j, queue)
	return isLent
}

// writes is the queue for what changes data.
func (l *lun) writes() chan *job {
	if l.access == OpenAccess {
		return l.ordered
	}
	return l.jobs
}

// noteLent books a job that is in a queue now. The caller holds mu.
func (l *lun) noteLent(j *job, queue chan *job) {
	if queue == l.ordered {
		l.behind++
	}
	if j.tracked {
		j.session.window.set(j.counter, running)
	}
}

// identify answers IDENTIFY DEVICE. The caller holds the LUN's mu.
func (j *job) identify(a aoe.ATA) {
	if a.Sectors() != 1 {
		j.refuse(aoe.ErrorArgument)
		return
	}
	fields := aoe.IdentifyFields{
		Serial: j.lun.generation, Firmware: firmwareName, Model: modelName, Sectors: j.sectors,
		Flush: true, FUA: true, Physical4K: true, QueueDepth: queueDepth,
	}
	if j.lun.back.Trims() {
		fields.TrimBlocks = trimBlocks
	}
	aoe.PutIdentify(j.frame.Buf()[aoe.ATALen:], &fields)
	j.answer(doneOK, aoe.IdentifyLen)
}

// powerMode answers CHECK POWER MODE: active.
func (j *job) powerMode() {
	j.answer(doneOK, 0)
	j.frame.Buf()[aoe.HeaderLen+2] = 0xff
}
