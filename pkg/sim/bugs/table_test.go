package bugs

// bugs are what the simulation has to find: the first part is what such a protocol gets wrong, the second what ours had wrong.
var bugs = []struct {
	name  string
	edits []edit
}{
	{"frame rewritten while the network holds it", []edit{{
		"initiator/pump.go", "	f := c.data.Get()\n	if f == nil {\n		f = c.data.GetReserve()\n	}\n	if f == nil {\n		return false\n	}\n	f.SetLen(copy(",
		"	f := e.frame\n	f.Hold()\n	f.SetLen(copy(",
	}}},
	{"frame freed while the network holds it", []edit{{
		"pool/frame.go", "	if f.holds == 0 {\n		f.pool.put(f)", "	if f.holds == 1 && f.len > 100 {\n		f.holds = 0\n	}\n	if f.holds == 0 {\n		f.pool.put(f)",
	}}},
	{"pool past its ceiling", []edit{{"initiator/identify.go", "Max: c.cfg.PoolMax, Reserve: window", "Max: 2 * c.cfg.PoolMax, Reserve: window"}}},
	{"new tag on retransmission", []edit{{
		"initiator/pump.go", "	e.sends++\n	e.path.order.remove(e) // behind those sent meanwhile\n	e.path.order.add(e)\n	c.stats.Retransmits++\n	c.transmit(e)",
		"	e.path.discount(e)\n	c.giveUp(e)",
	}}},
	{"no retransmission", []edit{{"initiator/pump.go", "	c.stats.Retransmits++\n	c.transmit(e)", "	c.stats.Retransmits++\n	e.sentAt, e.due = c.now, never"}}},
	{"no hold-back", []edit{{"initiator/holdback.go", "if !r.modifies() || c.session.state == sessionOpen {", "if true {"}}},
	{"no hold-back after a restart", []edit{{"initiator/core.go", "		c.holds.everything(now + duplicateLifetime)\n", ""}}},
	{"same incarnation for a new session", []edit{{"initiator/session.go", "	s.incarnation++\n", ""}}},
	{"cache epoch ignored", []edit{{"initiator/session.go", "	if s.cacheKnown && s.cacheEpoch", "	if false && s.cacheEpoch"}}},
	{"writes go on after a loss", []edit{{"initiator/receive.go", "	return c.lost && r.Op != OpRead &&", "	return c.lost && r.Op == OpFlush &&"}}},
	{"lost flush forgotten over a restart", []edit{
		{"initiator/core.go", "control: control, lost: cfg.Lost,", "control: control,"},
		{"initiator/core.go", "cfg.CacheEpoch, cfg.CacheEpoch != 0", "cfg.CacheEpoch, false"},
	}},
	{"identity check skipped", []edit{
		{"initiator/identify.go", "	if g := c.cfg.Generation; g != \"\"", "	if true {\n		return true\n	}\n	if g := c.cfg.Generation; g != \"\""},
		{"initiator/receive.go", "	if want == \"\" {\n		return true", "	if true {\n		return true"},
	}},
	{"short answers believed", []edit{{
		"initiator/receive.go", "		if payload, err = ata.Payload(int(e.sectors)); err != nil {\n			return false", "		if payload, err = ata.Payload(int(e.sectors)); err != nil {\n			payload = ata.Data()",
	}}},
	{"flush acknowledged early", []edit{{"target/execute.go", "	if err := l.back.Sync(); err != nil {\n		l.loseCache(err)", "	if err := error(nil); err != nil {\n		l.loseCache(err)"}}},
	{"FUA acknowledged early", []edit{{"target/execute.go", "l.back.WriteAt(data, off, true)", "l.back.WriteAt(data, off, false)"}}},
	{"failed flush not latched", []edit{{"target/execute.go", "	if err := l.back.Sync(); err != nil {\n		l.loseCache(err)\n", "	if err := l.back.Sync(); err != nil {\n"}}},
	{"power cut not noticed", []edit{{"target/shelf.go", "	lost := s.record.BootID != bootID && !s.record.Clean", "	lost := false"}}},
	{"generation in OPEN ignored", []edit{{"target/session.go", "	case o.Generation().String() != l.generation:", "	case false:"}}},
	{"OPEN answered before old writes are done", []edit{{"target/session.go", "	if l.drain(ctx) != nil {", "	if ctx.Err() != nil {"}}},
	{"anti-replay window too small", []edit{
		{"target/replay.go", "	replayWindow = 4096", "	replayWindow = 2"},
		{"target/session.go", "answer.Window = old.epoch, old.cacheEpoch, replayWindow", "answer.Window = old.epoch, old.cacheEpoch, 4096"},
		{"target/session.go", "answer.Window = epoch, l.cacheEpoch, replayWindow", "answer.Window = epoch, l.cacheEpoch, 4096"},
	}},
	{"no anti-replay window", []edit{{"target/ata.go", "		case known == unseen:", "		case true:"}}},
	{"copy of a running write answered", []edit{{"target/ata.go", "		case known.finished():", "		case known == running:\n			j.answer(doneOK, 0)\n		case known.finished():"}}},
	{"epochs used again at once", []edit{
		{"target/session.go", "	epoch := last\n", "	epoch := uint8(0)\n"},
		{"target/session.go", "		if l.sessions[epoch] == nil && (l.freed[epoch].IsZero() || now.Sub(l.freed[epoch]) >= duplicateLifetime) {",
			"		if l.sessions[epoch] == nil && now.Sub(l.freed[epoch]) >= 0 {"},
	}},
	{"admission checked only on enqueue", []edit{{"target/worker.go", "	if j.rules == l.rules || l.stillMayRun(j) {", "	if true {"}}},
	{"expel does not wait for running writes", []edit{{"target/admission.go", "		klog.InfoS(\"Node expelled\", \"lun\", l.addr(), \"node\", node)\n	}\n	return l.drainPatiently(ctx)",
		"		klog.InfoS(\"Node expelled\", \"lun\", l.addr(), \"node\", node)\n	}\n	return nil"}}},
	{"an attachment goes on in the next admission", []edit{{"target/session.go", "	case o.Admission() != 0 && o.Admission() != l.rec.Load().Admission:", "	case false:"}}},
	{"one number for all admissions", []edit{{"target/admission.go", "		if len(rec.Admitted) == 0 {", "		if rec.Admission == 0 {"}}},
	{"admission forgotten over a restart of the initiator", []edit{{"initiator/core.go", "	c.session.admission = cfg.Admission\n", ""}}},
	{"deleted LUN not scrubbed", []edit{
		{"target/shelf.go", "	if err := s.media.Remove(uuid); err != nil {\n		return err\n	}\n	return s.store", "	return s.store"},
	}},
	{"deleted LUN's file used again", []edit{
		{"target/shelf.go", "	if err := s.media.Remove(uuid); err != nil {\n		return err\n	}\n	return s.store", "	return s.store"},
		{"target/shelf.go", "	if err := s.collect(known)", "	if err := error(nil)"},
		{"target/admin.go", "UUID: s.newUUID(), Slot: r.Slot", "UUID: fmt.Sprint(\"slot-\", r.Slot), Slot: r.Slot"},
		{"target/admin.go", "	if err := s.media.Create(rec.UUID, r.SizeBytes); err != nil {", "	if err := s.media.Create(rec.UUID, r.SizeBytes); err != nil && err.Error() != \"file \"+rec.UUID+\" exists\" {"},
	}},

	// Found by the simulation.
	{"trims not counted as unflushed", []edit{{"initiator/receive.go", "	case OpWrite, OpTrim:\n		if !r.FUA {", "	case OpTrim:\n	case OpWrite:\n		if !r.FUA {"}}},
	{"an earlier process's writes not counted as unflushed", []edit{{"initiator/core.go", "		c.acked = 1 //", "		c.acked = 0 //"}}},
	{"a damaged OPEN makes a target foreign", []edit{{"initiator/session.go", "	unknownOpens = 4", "	unknownOpens = 1"}}},
	{"a damaged version fails a request", []edit{{"initiator/receive.go", "const versionTries = 4", "const versionTries = 0"}}},
	{"a damaged version of a parked frame sends it", []edit{{"initiator/receive.go", "			if !e.parked {", "			if true {"}}},
	{"foreign detach before copies are gone", []edit{{"initiator/session.go", " && (s.managed || !c.holds.any(now))", ""}}},
	{"commands cut short are refused", []edit{{"target/ata.go", "	if carriesData(a.Command()) {", "	if false {"}}},
	{"epochs of the LUN before used at once", []edit{{"target/admin.go", "	l.rest(s.vacated[r.Slot])\n", ""}}},
	{"a closing shelf says no such LUN", []edit{{"target/admin.go", "	if s.closed.Load() {\n		return ErrClosed\n	}\n	return fmt.Errorf(\"%s-%s", "	return fmt.Errorf(\"%s-%s"}}},
	{"loss at the end not marked", []edit{{"target/shelf.go", "l.addr(), err), l.shelf.media.Mark(l.uuid))", "l.addr(), err))"}}},
	{"loss not marked", []edit{{"target/worker.go", "	err := l.shelf.media.Mark(l.uuid) //", "	err := error(nil) //"}}},
}
