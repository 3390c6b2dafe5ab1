package target

import (
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/uring"
)

// What needs no disk a port does itself, for all frames that it received at once in one system call.

// held is a LUN whose inline a port has until serveStaged.
type held struct {
	lun   *lun
	alone bool
	// waits: a write had to be lent, so those that were staged after it come after it.
	waits bool
}

// hold takes a LUN's inline until serveStaged, alone or with other ports. While it waits for one it has none: another port may have them in another
// order, and somebody for each may wait to have it alone.
func (p *port) hold(l *lun, alone bool) {
	if h := p.heldOf(l); h != nil {
		if h.alone || !alone {
			return
		}
		p.serveStaged()
	}
	try, wait := l.inline.TryRLock, l.inline.RLock
	if alone {
		try, wait = l.inline.TryLock, l.inline.Lock
	}
	if !try() {
		p.serveStaged()
		wait()
	}
	p.holding = append(p.holding, held{lun: l, alone: alone})
}

// heldOf is what is held of a LUN, or nil.
func (p *port) heldOf(l *lun) *held {
	for i := range p.holding {
		if p.holding[i].lun == l {
			return &p.holding[i]
		}
	}
	return nil
}

// serveNow reads or writes in the port's own time, at once or in serveStaged, or lends the job to a worker. The caller holds inline.
func (p *port) serveNow(l *lun, j *job, a aoe.ATA) {
	i := len(p.transfers)
	p.transfers = append(p.transfers, uring.Transfer{Off: int64(lbaOf(a) * aoe.SectorSize), Write: a.Command().IsWrite()})
	t := &p.transfers[i]
	if t.Write {
		t.Data, _ = a.Payload(a.Sectors()) // ata has looked at it
	} else {
		t.Data = j.frame.Buf()[aoe.ATALen : aoe.ATALen+a.Sectors()*aoe.SectorSize]
	}
	if l.back.Cached(t) {
		p.served(j, t)
		*t = uring.Transfer{}
		p.transfers = p.transfers[:i]
		return
	}
	p.staged = append(p.staged, j)
}

// serveStaged serves what serveNow has left and ends every hold.
func (p *port) serveStaged() {
	p.batch.Run(p.transfers)
	for i, j := range p.staged {
		p.served(j, &p.transfers[i])
		p.staged[i], p.transfers[i] = nil, uring.Transfer{} // memory that may be unmapped some day
	}
	for i, h := range p.holding {
		if h.alone {
			h.lun.inline.Unlock()
		} else {
			h.lun.inline.RUnlock()
		}
		p.holding[i] = held{}
	}
	p.staged, p.transfers, p.holding = p.staged[:0], p.transfers[:0], p.holding[:0]
}

// served answers a job whose transfer is done, or lends it to a worker if that needs the disk. The caller holds inline.
func (p *port) served(j *job, t *uring.Transfer) {
	l, done := j.lun, t.Err == nil
	queue, reply := l.jobs, len(t.Data)
	if t.Write {
		queue, reply = l.writes(), 0
		if h := p.heldOf(l); h.alone {
			done = done && !h.waits // else written again, since the one before it is written only now
			h.waits = !done
		}
	}
	l.mu.Lock()
	gone := l.closed || j.rules != l.rules && l.mayRun(j.src, j.session) != aoe.NoError
	lent := !gone && !done && p.lend(j, queue)
	switch {
	case lent:
		l.noteLent(j, queue)
	case j.tracked && done:
		j.session.window.set(j.counter, doneOK)
	case j.tracked:
		j.session.window.set(j.counter, unseen)
	}
	l.mu.Unlock()
	if lent {
		return
	}
	if done && !gone {
		j.answer(doneOK, reply)
	}
	p.emit(j)
}
