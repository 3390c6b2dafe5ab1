package sim

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const sectorSize = 512

// never is the time of what has not happened. The model's time counts events, so that no two are at the same.
const never = math.MaxUint64

// operation is a request as its submitter knows it.
type operation struct {
	id     uint64
	kind   initiator.Op
	fua    bool
	device *device
	node   *node // the device's
	volume *volume
	lba, n int
	start  uint64
	end    uint64 // when it succeeded; never: not yet, or nobody knows
	lost   bool   // a part of it was, before it succeeded
}

// String names it in the trace.
func (o *operation) String() string {
	fua := ""
	if o.fua {
		fua = " FUA"
	}
	return fmt.Sprintf("#%d %s%s %s[%d+%d] of %s", o.id, o.kind, fua, o.volume, o.lba, o.n, o.node.name)
}

// cluster is a write of a sector and the reads that saw it. It took effect at one moment in [start of the write, first], and was the
// newest at last.
type cluster struct {
	op    *operation
	first uint64 // first end of one of them
	last  uint64 // last start of one of them
}

// before says whether a must have taken effect before b.
func (a *cluster) before(b *cluster) bool { return a.first < b.last }

// volume is a LUN's data and who may change them.
type volume struct {
	slot       uint8
	index      int
	generation string
	uuid       string // of the LUN; its file's name
	open       bool   // access: open
	sectors    int
	mayWrite   map[*node]bool
	history    [][]*cluster // per sector
	lossAt     uint64       // when unflushed data were last in danger; 0: never
}

// String names it in the trace.
func (v *volume) String() string { return fmt.Sprintf("e%d.%d-%d", shelfNumber, v.slot, v.index) }

// model checks everything that happens.
type model struct {
	sim     *Sim
	time    uint64
	ops     []*operation
	volumes map[string]*volume // by UUID
}

func newModel(s *Sim) *model {
	return &model{sim: s, volumes: map[string]*volume{}}
}

func (m *model) tick() uint64 {
	m.time++
	return m.time
}

// begin makes an operation; the stamp of its sectors is its number.
func (m *model) begin(kind initiator.Op, d *device, lba, sectors int) *operation {
	v := d.volume
	o := &operation{id: uint64(len(m.ops) + 1), kind: kind, device: d, node: d.node, volume: v, lba: lba, n: sectors, start: m.tick(), end: never}
	m.ops = append(m.ops, o)
	if kind == initiator.OpWrite || kind == initiator.OpTrim {
		for i := lba; i < lba+sectors; i++ {
			v.history[i] = append(v.history[i], &cluster{op: o, first: never, last: o.start})
		}
	}
	return o
}

// stamp is what every word of a sector says: which operation wrote it, and where.
func stamp(o *operation, lba int) uint64 { return o.id<<16 | uint64(lba) }

// fill makes the data of a write.
func (o *operation) fill(data []byte) {
	for i := range o.n {
		word := stamp(o, o.lba+i)
		for at := i * sectorSize; at < (i+1)*sectorSize; at += 8 {
			binary.LittleEndian.PutUint64(data[at:], word)
		}
	}
}

// writer decodes a sector; nil: zeroes. It fails for what nobody wrote there.
func (m *model) writer(where string, v *volume, sector []byte, lba int) *operation {
	word := binary.LittleEndian.Uint64(sector)
	for at := 8; at < sectorSize; at += 8 {
		if other := binary.LittleEndian.Uint64(sector[at:]); other != word {
			m.sim.fail("%s: %s sector %d is torn: %x and %x", where, v, lba, word, other)
			return nil
		}
	}
	if word == 0 {
		return nil
	}
	id := word >> 16
	if id == 0 || id > uint64(len(m.ops)) || int(word&0xffff) != lba {
		m.sim.fail("%s: %s sector %d holds %x, which nobody wrote there", where, v, lba, word)
		return nil
	}
	o := m.ops[id-1]
	if o.volume != v {
		m.sim.fail("%s: %s sector %d holds data of another volume: %s", where, v, lba, o)
		return nil
	}
	return o
}

// find is the cluster of a write at a sector; nil if it is not known any more.
func (v *volume) find(lba int, o *operation) *cluster {
	for _, c := range v.history[lba] {
		if c.op == o {
			return c
		}
	}
	return nil
}

// applied checks a write that reaches a disk, before it does.
func (m *model) applied(f *file, data []byte, lba int) {
	v := m.volumes[f.name]
	if v == nil {
		m.sim.fail("disk: write to a file that is no volume's")
		return
	}
	if f.removed {
		m.sim.fail("disk: write to %s, which is deleted", v)
		return
	}
	for i := 0; i < len(data)/sectorSize; i++ {
		o := m.writer("disk: write", v, data[i*sectorSize:(i+1)*sectorSize], lba+i)
		if o == nil {
			m.sim.fail("disk: write of %s sector %d: zeroes, which nobody writes", v, lba+i)
			return
		}
		if i == 0 {
			m.sim.tracef("disk: %s sector %d… is written by #%d", v, lba, o.id)
		}
		m.mayApply(v, f, o, lba+i)
	}
}

func (m *model) mayApply(v *volume, f *file, o *operation, lba int) {
	if !v.open && !v.mayWrite[o.node] {
		m.sim.fail("fencing: %s takes effect after %s was taken off", o, o.node.name)
	}
	if !v.open && o.device.expelled {
		m.sim.fail("fencing: %s takes effect after %s was taken off, and admitted again", o, o.node.name)
	}
	if !v.open && o.end != never {
		m.sim.fail("late duplicate: %s is executed again after its answer, at sector %d", o, lba)
	}
	if now := m.writer("disk", v, f.sector(f.cache, lba), lba); now != nil && o.end < now.start {
		m.sim.fail("late duplicate: %s overwrites newer data of %s at sector %d", o, now, lba)
	}
}

// discarded checks a TRIM that reaches a disk, before it does.
func (m *model) discarded(f *file, lba, n int) {
	v := m.volumes[f.name]
	if v == nil || f.removed {
		m.sim.fail("disk: trim of a file that is no volume's, or deleted")
		return
	}
	m.sim.tracef("disk: %s sector %d+%d is trimmed", v, lba, n)
}

// completed checks an answer that the kernel gets.
func (m *model) completed(d *device, o *operation, data []byte, err error) {
	now := m.tick()
	v := o.volume
	if err != nil {
		m.failed(d, o, err)
		return
	}
	o.end = now
	switch o.kind {
	case initiator.OpRead:
		for i := range o.n {
			m.sawSector(o, data[i*sectorSize:(i+1)*sectorSize], o.lba+i)
		}
	case initiator.OpWrite, initiator.OpTrim:
		if d.toldAt > 0 && o.start > d.toldAt {
			m.sim.fail("%s succeeds after a flush of this attachment failed", o)
		}
		for i := o.lba; i < o.lba+o.n; i++ {
			if c := v.find(i, o); c != nil {
				c.first = min(c.first, now)
				m.isLinear(v, i, c)
				v.prune(i, c, m.oldest(v))
			}
		}
		m.isApplied(o)
	case initiator.OpFlush:
		m.isDurable(d, o)
	}
}

// oldest is when the oldest request began that has not been answered.
func (m *model) oldest(v *volume) uint64 {
	oldest := m.time
	for _, n := range m.sim.nodes {
		for _, d := range n.devices {
			for _, r := range d.pending {
				if r.op.volume == v {
					oldest = min(oldest, r.op.start)
				}
			}
		}
	}
	return oldest
}

// prune forgets what no read that is still to be answered may see, now that c is done.
func (v *volume) prune(lba int, c *cluster, oldest uint64) {
	if c.op.end >= oldest {
		return
	}
	kept := v.history[lba][:0]
	for _, old := range v.history[lba] {
		if old == c || old.first >= c.op.start {
			kept = append(kept, old)
		}
	}
	v.history[lba] = kept
}

// sawSector checks what a read brought.
func (m *model) sawSector(o *operation, sector []byte, lba int) {
	v := o.volume
	if o.start < v.lossAt {
		return // it may have been answered from before the loss
	}
	w := m.writer("read", v, sector, lba)
	if w == nil {
		m.sawZeroes(o, lba)
		return
	}
	c := v.find(lba, w)
	if c == nil {
		m.sim.fail("read: %s sees %s at sector %d, which was overwritten or lost", o, w, lba)
		return
	}
	c.first, c.last = min(c.first, o.end), max(c.last, o.start)
	m.isLinear(v, lba, c)
}

// sawZeroes: they may be the first contents' or any trim's, so that no cluster learns from them.
func (m *model) sawZeroes(o *operation, lba int) {
	v := o.volume
	for _, z := range v.history[lba] {
		if z.op != nil && z.op.kind != initiator.OpTrim {
			continue
		}
		fits := true
		for _, c := range v.history[lba] {
			fits = fits && (c == z || z.first >= c.last || c.first >= o.start)
		}
		if fits {
			return
		}
	}
	m.sim.fail("read: %s sees zeroes at sector %d, which was written", o, lba)
}

// isLinear checks that there is an order of all that happened at a sector.
func (m *model) isLinear(v *volume, lba int, c *cluster) {
	for _, other := range v.history[lba] {
		if other == c || other.op == nil || c.op == nil {
			continue
		}
		if c.before(other) && other.before(c) {
			m.sim.fail("not linearizable: %s sector %d: %s and %s would each have to be before the other", v, lba, c.op, other.op)
		}
	}
}

// isApplied checks that an acknowledged write is on the disk, or overwritten.
func (m *model) isApplied(o *operation) {
	v, f := o.volume, m.file(o.volume)
	if f == nil || o.kind != initiator.OpWrite {
		return
	}
	if o.start < v.lossAt {
		m.isPartlyLost(o, f)
		return
	}
	for i := o.lba; i < o.lba+o.n; i++ {
		at, what := f.cache, "acknowledged but not executed"
		if m.isOlder(v, f.sector(at, i), i, o) {
			m.sim.fail("%s: %s sector %d", what, o, i)
			return
		}
		if o.fua && m.isOlder(v, f.sector(f.durable, i), i, o) {
			m.sim.fail("acknowledged but not durable: %s sector %d", o, i)
			return
		}
	}
}

// isPartlyLost looks at a write that was under way during a loss: parts may have been answered before it, and lost. Its attachment must know.
func (m *model) isPartlyLost(o *operation, f *file) {
	for i := o.lba; i < o.lba+o.n; i++ {
		if m.isOlder(o.volume, f.sector(f.cache, i), i, o) {
			o.lost, o.device.lostAt = true, m.time
		}
	}
}

// isOlder says whether a sector holds what must have been before a write.
func (m *model) isOlder(v *volume, sector []byte, lba int, o *operation) bool {
	w := m.writer("disk", v, sector, lba)
	if w == o {
		return false
	}
	c := v.find(lba, o)
	if w == nil {
		for _, z := range v.history[lba] {
			if z.op != nil && z.op.kind == initiator.OpTrim && c != nil && z.first >= c.last {
				return false
			}
		}
		return true
	}
	if old := v.find(lba, w); old != nil {
		return old.first < o.start
	}
	return w.end < o.start
}

func (m *model) file(v *volume) *file {
	return m.sim.storage.disk.files[v.uuid]
}

// isDurable checks a flush that succeeded: what was acknowledged before it began is durable.
func (m *model) isDurable(d *device, o *operation) {
	v, f := o.volume, m.file(o.volume)
	if d.lostAt > 0 && o.start > d.lostAt {
		m.sim.fail("flush: %s succeeds after acknowledged data of this attachment were lost", o)
		return
	}
	if f == nil || o.start < v.lossAt {
		return
	}
	for lba := range v.history {
		// Of what was acknowledged before, the newest that began: what is as new as this is as new as all.
		var newest *operation
		for _, c := range v.history[lba] {
			if c.op != nil && c.op.kind == initiator.OpWrite && c.op.end < o.start && !c.op.lost && (newest == nil || c.op.start > newest.start) {
				newest = c.op
			}
		}
		if newest == nil || binary.LittleEndian.Uint64(f.durable[lba*sectorSize:]) == stamp(newest, lba) {
			continue
		}
		if m.isOlder(v, f.sector(f.durable, lba), lba, newest) {
			m.sim.fail("flush: %s succeeds, but %s sector %d is not durable", o, newest, lba)
			return
		}
	}
}

// failed checks that a failure has a reason.
func (m *model) failed(d *device, o *operation, err error) {
	v := o.volume
	switch {
	case d.gone, d.fenced:
	case v.lossAt > d.attachedAt && o.kind == initiator.OpFlush:
		d.toldAt = m.time
	case v.lossAt > d.attachedAt && o.kind != initiator.OpRead:
	default:
		m.sim.fail("failed without a reason: %s: %v", o, err)
	}
}

// lost begins a new history for a file's volume: what the disk has now, and what is still under way.
func (m *model) lost(f *file) {
	v := m.volumes[f.name]
	if v == nil {
		return
	}
	now := m.tick()
	v.lossAt = now
	for lba := range v.history {
		m.lostSector(v, f, lba, now)
	}
}

func (m *model) lostSector(v *volume, f *file, lba int, now uint64) {
	w := m.writer("disk", v, f.sector(f.cache, lba), lba)
	var kept []*cluster
	var newest *cluster
	for _, c := range v.history[lba] {
		switch {
		case c.op != nil && c.op.end == never && c.op != w:
			kept = append(kept, &cluster{op: c.op, first: never, last: c.op.start})
		case c.op != nil && c.op.end != never && c.op != w && (newest == nil || c.op.end > newest.op.end):
			newest = c
		}
	}
	if newest != nil && m.isOlder(v, f.sector(f.cache, lba), lba, newest.op) {
		m.sim.tracef("model: %s sector %d: %s is lost", v, lba, newest.op)
		newest.op.device.lostAt = now
	}
	v.history[lba] = append(kept, &cluster{op: w, first: now, last: now})
}
