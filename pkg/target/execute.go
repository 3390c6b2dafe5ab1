package target

import (
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// execute runs an ATA command that touches the LUN's bytes and puts its answer into the job's frame.
func (l *lun) execute(j *job) outcome {
	a, err := j.request().ATA()
	if err != nil {
		j.answer(doneBadArg, 0)
		return doneBadArg
	}
	data := 0
	var o outcome
	switch c := a.Command(); {
	case c.IsRead():
		o = l.read(j, a)
		data = a.Sectors() * aoe.SectorSize
	case c.IsWrite():
		o = l.write(j, a)
	case c == aoe.ATAFlush, c == aoe.ATAFlushExt:
		o = l.flush(j)
	case c == aoe.ATADataSetManagement:
		o = l.trim(j, a)
	case c == aoe.ATAReadVerify, c == aoe.ATAReadVerifyExt:
		o = l.verify(j, a)
	default:
		o = doneAborted
	}
	if o != doneFailed || l.mayTell() {
		j.answer(o, data)
	}
	return o
}

// answer turns the request in the job's frame into its answer; data bytes behind the registers go along if it is doneOK.
func (j *job) answer(o outcome, data int) {
	var status, errorRegister uint8
	switch o {
	case doneOK:
		status = aoe.StatusDRDY
	case doneBadRange:
		status, errorRegister = aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrIDNF
	case doneUnreadable:
		status, errorRegister = aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrUNC
	case doneAborted:
		status, errorRegister = aoe.StatusDRDY|aoe.StatusERR, aoe.ATAErrABRT
	case doneFailed:
		status, errorRegister = aoe.StatusDRDY|aoe.StatusDF|aoe.StatusERR, aoe.ATAErrABRT
	default:
		j.refuse(aoe.ErrorArgument)
		return
	}
	n := aoe.PutATAReply(j.frame.Buf(), j.request(), j.port.mac, j.lun.addr(), status, errorRegister)
	if o == doneOK {
		n += data
	}
	j.reply = n
}

// lbaOf is the address with the width that command and flags ask for: an extended command has 48 bits even if the
// sender forgot the flag.
func lbaOf(a aoe.ATA) uint64 {
	if a.Command().IsExt() || a.Flags()&aoe.ATAExtended != 0 {
		return a.LBA48()
	}
	return a.LBA28()
}

// within says whether sectors from lba are on a disk of size sectors.
func within(lba, sectors, size uint64) bool { return sectors <= size && lba <= size-sectors }

// readable checks a read before its buffer is touched; 0 means that it may go on.
func readable(j *job, a aoe.ATA) outcome {
	n := a.Sectors()
	if n == 0 || n > j.port.sectors {
		return doneBadArg
	}
	if !within(lbaOf(a), uint64(n), j.sectors) {
		return doneBadRange
	}
	return unseen
}

func (l *lun) read(j *job, a aoe.ATA) outcome {
	if o := readable(j, a); o != unseen {
		return o
	}
	n := a.Sectors() * aoe.SectorSize
	if err := l.back.ReadAt(j.frame.Buf()[aoe.ATALen:aoe.ATALen+n], int64(lbaOf(a)*aoe.SectorSize)); err != nil {
		l.shelf.diskError(l, "read", err)
		return doneUnreadable
	}
	return doneOK
}

// writable checks a write; 0 means that it may go on.
func writable(j *job, a aoe.ATA) outcome {
	n := a.Sectors()
	if _, err := a.Payload(n); err != nil || n == 0 {
		return doneBadArg
	}
	if !within(lbaOf(a), uint64(n), j.sectors) {
		return doneBadRange
	}
	return unseen
}

func (l *lun) write(j *job, a aoe.ATA) outcome {
	if o := writable(j, a); o != unseen {
		return o
	}
	data, _ := a.Payload(a.Sectors()) // writable has looked at it
	lba := lbaOf(a)
	if a.Command() == aoe.ATAWriteDMAFUAExt {
		return l.writeDurable(j, data, int64(lba*aoe.SectorSize))
	}
	if err := l.back.WriteAt(data, int64(lba*aoe.SectorSize), false); err != nil {
		l.shelf.diskError(l, "write", err)
		return doneFailed
	}
	return doneOK
}

// writeDurable is a write with FUA. The kernel may report to it what an older write lost, so it counts as a flush.
func (l *lun) writeDurable(j *job, data []byte, off int64) outcome {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.lost(j.session) {
		return doneFailed
	}
	if err := l.back.WriteAt(data, off, true); err != nil {
		l.loseCache(err)
		return doneFailed
	}
	return doneOK
}

func (l *lun) flush(j *job) outcome {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.lost(j.session) {
		return doneFailed
	}
	if err := l.back.Sync(); err != nil {
		l.loseCache(err)
		return doneFailed
	}
	return doneOK
}

// lost says whether writes that were acknowledged in this session may be gone: then no flush of it succeeds any more.
func (l *lun) lost(s *session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s == nil {
		return l.flushLost
	}
	return s.cacheEpoch != l.cacheEpoch
}

// trim discards the ranges of a DATA SET MANAGEMENT, all of them or, if one is out of range, none.
func (l *lun) trim(j *job, a aoe.ATA) outcome {
	payload, err := a.Payload(a.Sectors())
	if err != nil || len(payload) == 0 {
		return doneBadArg
	}
	if a.Feature() != aoe.FeatureTrim || !l.back.Trims() {
		return doneAborted
	}
	entries := aoe.TrimEntries(payload)
	for i := range entries.Len() {
		if lba, n := entries.Entry(i); n > 0 && !within(lba, n, j.sectors) {
			return doneBadRange
		}
	}
	for i := range entries.Len() {
		lba, n := entries.Entry(i)
		if n == 0 {
			continue
		}
		if err := l.back.Discard(int64(lba*aoe.SectorSize), int64(n*aoe.SectorSize)); err != nil {
			l.shelf.diskError(l, "trim", err)
			return doneFailed
		}
	}
	return doneOK
}

// verify reads without answering data, in pieces as large as the job's frame.
func (l *lun) verify(j *job, a aoe.ATA) outcome {
	n := a.Sectors()
	lba := lbaOf(a)
	if n == 0 {
		return doneBadArg
	}
	if !within(lba, uint64(n), j.sectors) {
		return doneBadRange
	}
	piece := j.frame.Buf()[aoe.ATALen:]
	piece = piece[:len(piece)/aoe.SectorSize*aoe.SectorSize]
	for off, left := int64(lba*aoe.SectorSize), n*aoe.SectorSize; left > 0; {
		p := piece[:min(left, len(piece))]
		if err := l.back.ReadAt(p, off); err != nil {
			l.shelf.diskError(l, "verify", err)
			return doneUnreadable
		}
		off, left = off+int64(len(p)), left-len(p)
	}
	return doneOK
}
