package target

import (
	"bytes"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// maxMask and maxReserved fit an answer at an MTU of 1500.
	maxMask     = 185
	maxReserved = 247
	// fencePatience is how long a reservation waits for older writes; the initiator retransmits when it takes longer.
	fencePatience = 5 * time.Second
)

// serve runs an OPEN or an in-band edit and puts its answer into the job's frame. The clerk calls it.
func (l *lun) serve(j *job) {
	l.mu.Lock()
	visible, closed := l.visible(j.src), l.closed
	l.mu.Unlock()
	f := j.request()
	if closed || !visible && f.Command() != aoe.CommandOpen {
		return
	}
	var err error
	switch f.Command() {
	case aoe.CommandOpen:
		err = l.serveOpen(j, f)
	case aoe.CommandConfig:
		err = l.serveConfig(j, f)
	case aoe.CommandMACMask:
		err = l.serveMask(j, f)
	case aoe.CommandReserve:
		err = l.serveReserve(j, f)
	}
	if err != nil {
		klog.ErrorS(err, "In-band request failed", "lun", l.addr(), "command", f.Command().String(), "sender", j.src.String())
		j.refuse(aoe.ErrorUnavailable)
	}
	l.mu.Lock()
	j.rules = l.rules // what the answer tells was decided by these
	l.mu.Unlock()
}

// header is that of a job's answer.
func (j *job) header() aoe.Header {
	return aoe.Header{Dst: j.src, Src: j.port.mac, Response: true, Addr: j.lun.addr(), Tag: j.request().Tag()}
}

func (l *lun) serveOpen(j *job, f aoe.Frame) error {
	o, err := f.Open()
	if err != nil {
		j.refuse(aoe.ErrorCommand)
		return nil
	}
	if o.Op() != aoe.OpenSession && o.Op() != aoe.CloseSession {
		j.refuse(aoe.ErrorArgument)
		return nil
	}
	answer, err := l.open(j.src, o)
	if err != nil {
		return err
	}
	h := j.header()
	j.reply = aoe.PutOpen(j.frame.Buf(), &h, &answer)
	if answer.Status == aoe.OpenDone {
		klog.V(2).InfoS("Session", "lun", l.addr(), "op", answer.Op, "sender", j.src.String(), "epoch", answer.Epoch, "incarnation", answer.Incarnation)
	}
	return nil
}

// serveConfig sets the config string. That of a managed LUN is its identity, edited by nobody.
func (l *lun) serveConfig(j *job, f aoe.Frame) error {
	c, err := f.Config()
	if err != nil {
		return nil // too short to answer
	}
	operand, err := c.ConfigString()
	if err != nil || l.access == ManagedAccess && c.Command() == aoe.ConfigForceSet {
		j.refuse(aoe.ErrorArgument)
		return nil
	}
	command, code := c.Command(), aoe.NoError
	l.control.Lock()
	defer l.control.Unlock()
	same := bytes.Equal(l.rec.Load().Config, operand)
	switch {
	case same:
	case command == aoe.ConfigSet && len(l.rec.Load().Config) > 0:
		code = aoe.ErrorConfigSet
	default:
		value := bytes.Clone(operand)
		if err := l.save(func(rec *lunRecord) { rec.Config = value }); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	j.putConfig(command, code)
	return nil
}

// serveMask reads or edits the mask list. A managed LUN shows its admission list and refuses edits.
func (l *lun) serveMask(j *job, f aoe.Frame) error {
	m, err := f.MACMask()
	// An error code belongs into answers only; with one, the count says nothing about the frame's length.
	if err != nil || m.Command() > aoe.MaskEdit || m.Error() != aoe.MaskNoError {
		j.refuse(aoe.ErrorArgument)
		return nil
	}
	h := j.header()
	l.control.Lock()
	defer l.control.Unlock()
	list, applied, why := l.maskList(), 0, aoe.MaskNoError
	if m.Command() == aoe.MaskEdit {
		if l.access == ManagedAccess {
			j.reply = aoe.PutMACMaskFailed(j.frame.Buf(), &h, aoe.MaskUnspecified, 0)
			return nil
		}
		list, applied, why = editMask(list, m)
		if err := l.fence(func(rec *lunRecord) { rec.Mask = list }); err != nil {
			return err
		}
	}
	if why != aoe.MaskNoError {
		j.reply = aoe.PutMACMaskFailed(j.frame.Buf(), &h, why, applied)
		return nil
	}
	shown := make([]aoe.Directive, len(list))
	for i, mac := range list {
		shown[i].MAC = mac
	}
	j.reply = aoe.PutMACMask(j.frame.Buf(), &h, m.Command(), shown)
	return nil
}

// maskList is the list as a mask command shows it. The caller holds control.
func (l *lun) maskList() []aoe.MAC {
	if l.access == OpenAccess {
		return slices.Clone(l.rec.Load().Mask)
	}
	var list []aoe.MAC
	for _, a := range l.rec.Load().Admitted {
		list = append(list, a.MACs...)
	}
	return list[:min(len(list), maxMask)]
}

// editMask applies directives until one fails; those before stay applied.
func editMask(list []aoe.MAC, m aoe.MACMask) (edited []aoe.MAC, applied int, why aoe.MaskError) {
	for i := range m.Count() {
		d := m.Directive(i)
		at := slices.Index(list, d.MAC)
		switch {
		case d.Command == aoe.DirectiveNone:
		case d.Command == aoe.DirectiveAdd && at >= 0, d.Command == aoe.DirectiveDelete && at < 0:
		case d.Command == aoe.DirectiveAdd && len(list) >= maxMask:
			return list, i, aoe.MaskFull
		case d.Command == aoe.DirectiveAdd:
			list = append(list, d.MAC)
		case d.Command == aoe.DirectiveDelete:
			list = slices.Delete(list, at, at+1)
		default:
			return list, i, aoe.MaskBadDirective
		}
	}
	return list, m.Count(), aoe.MaskNoError
}

// serveReserve reads or sets the reservation of an open LUN; managed ones are fenced by their admission list alone.
func (l *lun) serveReserve(j *job, f aoe.Frame) error {
	r, err := f.Reserve()
	if err != nil || r.Command() > aoe.ReserveForceSet || r.Count() > maxReserved ||
		l.access == ManagedAccess && r.Command() != aoe.ReserveRead {
		j.refuse(aoe.ErrorArgument)
		return nil
	}
	l.control.Lock()
	defer l.control.Unlock()
	h := j.header()
	holders := l.rec.Load().Reserved
	free := len(holders) == 0 || slices.Contains(holders, j.src)
	switch {
	case r.Command() == aoe.ReserveRead:
	case r.Command() == aoe.ReserveSet && !free:
		h.Error = aoe.ErrorReserved
	default:
		macs := make([]aoe.MAC, r.Count())
		for i := range macs {
			macs[i] = r.MAC(i)
		}
		if err := l.fence(func(rec *lunRecord) { rec.Reserved = macs }); err != nil {
			return err
		}
	}
	j.reply = aoe.PutReserve(j.frame.Buf(), &h, r.Command(), l.rec.Load().Reserved)
	return nil
}

// fence saves a change of who may use the LUN and waits until no write of somebody who now may not is running. The
// caller holds control.
func (l *lun) fence(change func(*lunRecord)) error {
	if err := l.save(change); err != nil {
		return err
	}
	ctx, cancel := l.shelf.timeout(fencePatience)
	defer cancel()
	return l.drain(ctx)
}
