package shelf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// Sentinel is whom a target is reserved to that nobody may use: a locally administered address that no station has.
var Sentinel = aoe.MAC{0x02, 'a', 'o', 'e', 0xff, 0xfe}

// Intents is what the proxy has to know of volumes: who owns a slot, and which nodes may use it. It never writes.
type Intents interface {
	// GetSlot and GetVolume fail with volume.ErrNotFound.
	GetSlot(ctx context.Context, addr aoe.Addr) (*volume.Slot, error)
	GetVolume(ctx context.Context, name string) (*volume.Record, error)
}

// ProxyConfig describes a shelf of targets that have no management API.
type ProxyConfig struct {
	Shelf   uint16
	Slots   []uint8 // those that may be used
	UUID    string  // the same wherever the proxy runs
	Info    Info
	Client  *inband.Client // borrowed, for this proxy alone
	Intents Intents
	// Wipe: what is on a LUN is overwritten when a volume takes it. Else a LUN that is not blank is refused.
	Wipe bool
	// Synchronous: the targets answer a write when it is on stable storage (vblade -s). Else those whose flush does nothing are warned of.
	Synchronous bool
	// DuplicateLifetime is how long a frame that was sent twice may still be on its way; 0: 1 s.
	DuplicateLifetime time.Duration
}

// Proxy implements the shelf API over targets that have none, with in-band commands. What a slot is, its config string says; whose it is,
// the intent says, since many targets forget the string.
type Proxy struct {
	shelfv1.UnimplementedShelfServer
	cfg   ProxyConfig
	slots map[uint8]*slot
	ctx   context.Context // of jobs; ends them
	stop  context.CancelFunc
	jobs  sync.WaitGroup
}

// slot is what the proxy knows of one. work is held by whoever acts on the target; mu guards the rest and is never held over an exchange.
type slot struct {
	addr aoe.Addr
	work sync.Mutex

	mu      sync.Mutex
	target  *inband.Target // as it answered last; nil: it does not
	refusal string         // what was found on it when it was to be taken; empty: nothing, or it was not tried
	job     *job
	// cleared is the volume that was scrubbed last, wiped the one that found the LUN wiped: an answer may have been lost.
	cleared, wiped string
	known          string    // the claim on it that is known to be of this cluster
	jobEnded       time.Time // the last one, of this proxy or the one before
}

// NewProxy asks nobody yet. Run keeps it up to date, Close ends jobs.
func NewProxy(cfg ProxyConfig) *Proxy {
	if cfg.DuplicateLifetime == 0 {
		cfg.DuplicateLifetime = time.Second
	}
	p := &Proxy{cfg: cfg, slots: map[uint8]*slot{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, n := range cfg.Slots {
		p.slots[n] = &slot{addr: aoe.Addr{Shelf: cfg.Shelf, Slot: n}, jobEnded: time.Now()}
	}
	return p
}

// Close ends what runs in the background and waits for it; scrubbing goes on where it was when a proxy starts again.
func (p *Proxy) Close() {
	p.stop()
	p.jobs.Wait()
}

// GetInfo implements the API.
func (p *Proxy) GetInfo(context.Context, *shelfv1.GetInfoRequest) (*shelfv1.GetInfoResponse, error) {
	return &shelfv1.GetInfoResponse{
		Shelf: uint32(p.cfg.Shelf), Uuid: p.cfg.UUID, Version: p.cfg.Info.Version, Segment: p.cfg.Info.Segment,
		Interfaces: p.cfg.Info.Interfaces, MaxSlots: uint32(len(p.slots)), DurableFlush: p.cfg.Synchronous, Labels: p.cfg.Info.Labels,
	}, nil
}

// begin finds a slot and holds it for a call; end lets it go. ABORTED while something else works on it.
func (p *Proxy) begin(id *shelfv1.LunId) (s *slot, generation string, end func(), err error) {
	number, generation, err := lunID(id)
	if err != nil {
		return nil, "", nil, err
	}
	s = p.slots[number]
	if s == nil {
		return nil, "", nil, status.Errorf(codes.NotFound, "slot %d is not in the pool", number)
	}
	if !s.work.TryLock() {
		return nil, "", nil, status.Errorf(codes.Aborted, "%s: another call works on it", s.addr)
	}
	return s, generation, s.work.Unlock, nil
}

// answer is the way to the slot's target; UNAVAILABLE if there is none, or more than one target.
func (s *slot) answer() (inband.Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.target == nil:
		return inband.Answer{}, status.Errorf(codes.Unavailable, "%s does not answer", s.addr)
	case s.target.Conflict != "":
		return inband.Answer{}, status.Errorf(codes.Unavailable, "%s: %s", s.addr, s.target.Conflict)
	}
	a := s.target.Answers[0]
	if reason := unusable(a); reason != "" {
		return inband.Answer{}, status.Errorf(codes.Unavailable, "%s %s", s.addr, reason)
	}
	return a, nil
}

// unusable says what a target lacks; empty: nothing.
func unusable(a inband.Answer) string {
	switch {
	case a.Sectors == 0:
		return "does not answer IDENTIFY"
	case !a.LBA48:
		return "knows no 48-bit addresses"
	case a.Reserve == inband.Unknown:
		return "has not said yet whether it can be reserved"
	}
	return ""
}

// intent returns the record of the volume that owns the slot, nil if none does.
func (p *Proxy) intent(ctx context.Context, addr aoe.Addr) (*volume.Record, error) {
	owner, err := p.cfg.Intents.GetSlot(ctx, addr)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "whose %s is cannot be read: %v", addr, err)
	}
	rec, err := p.cfg.Intents.GetVolume(ctx, owner.VolumeName)
	switch {
	case errors.Is(err, volume.ErrNotFound), err == nil && rec.ID != (volume.ID{Addr: addr, Generation: owner.Generation}):
		return nil, nil // a slot without its record: the controller's repair releases it
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "volume %s, which owns %s, cannot be read: %v", owner.VolumeName, addr, err)
	}
	return rec, nil
}

// owned returns the record if the generation is the slot's, else NOT_FOUND.
func (p *Proxy) owned(ctx context.Context, s *slot, generation string) (*volume.Record, error) {
	rec, err := p.intent(ctx, s.addr)
	if err != nil {
		return nil, err
	}
	if rec == nil || string(rec.ID.Generation) != generation {
		return nil, status.Errorf(codes.NotFound, "no volume with identity %s owns %s", generation, s.addr)
	}
	return rec, nil
}

// claimOf is the config string of the volume's slot.
func claimOf(rec *volume.Record) aoe.Claim {
	return aoe.Claim{Generation: string(rec.ID.Generation), Owner: rec.Claim}
}

// sizeOf is a target's size in bytes, as far as volumes use it.
func sizeOf(a inband.Answer) int64 {
	return int64(a.Sectors) * aoe.SectorSize / volume.SizeUnit * volume.SizeUnit
}

// lun is the API's view of a slot that a volume owns.
func (p *Proxy) lun(s *slot, a inband.Answer, rec *volume.Record) *shelfv1.Lun {
	l := &shelfv1.Lun{
		Id: &shelfv1.LunId{Slot: uint32(s.addr.Slot), Generation: string(rec.ID.Generation)}, Uuid: p.cfg.UUID, Name: rec.Name,
		SizeBytes: uint64(sizeOf(a)), AllocatedBytes: uint64(sizeOf(a)), Access: shelfv1.Access_ACCESS_MANAGED, Shelf: uint32(p.cfg.Shelf),
	}
	for _, adm := range rec.Admitted {
		l.Admitted = append(l.Admitted, &shelfv1.Admission{Node: adm.Node, Macs: adm.MACs})
	}
	s.mu.Lock()
	if s.target != nil {
		for _, path := range s.target.Answers {
			if mac := path.MAC.String(); !slices.Contains(l.Macs, mac) {
				l.Macs = append(l.Macs, mac)
			}
		}
	}
	s.mu.Unlock()
	l.Warnings = p.warnings(s, a)
	return l
}

// warnings says what the target does not do that a volume's user counts on.
func (p *Proxy) warnings(s *slot, a inband.Answer) []*shelfv1.Warning {
	kind := inband.QuirksOf(a)
	var all []*shelfv1.Warning
	if a.Reserve != inband.Yes {
		all = append(all, &shelfv1.Warning{Reason: "NotFenced", Message: fmt.Sprintf(
			"%s (%s) knows no reservations: a node that was taken off can still write, and only Kubernetes keeps a second one away", s.addr, kind.Name)})
	}
	if does := "answers a flush without making anything durable"; !p.cfg.Synchronous && (kind.FlushLies || !a.FlushClaimed) {
		if !a.FlushClaimed {
			does = "knows no flush"
		}
		all = append(all, &shelfv1.Warning{Reason: "NotDurable", Message: fmt.Sprintf(
			"%s (%s) %s: what was synced can be lost when its host loses power, unless each write is on stable storage when it is answered (vblade -s); then declare the pool synchronous",
			s.addr, kind.Name, does)})
	}
	return all
}

// GetLun implements the API.
func (p *Proxy) GetLun(ctx context.Context, r *shelfv1.GetLunRequest) (*shelfv1.Lun, error) {
	s, generation, end, err := p.begin(r.GetId())
	if err != nil {
		return nil, err
	}
	defer end()
	rec, err := p.owned(ctx, s, generation)
	if err != nil {
		return nil, err
	}
	a, err := s.answer()
	if err != nil {
		return nil, err
	}
	return p.lun(s, a, rec), nil
}

// GrowLun implements the API: a LUN is as large as it is.
func (p *Proxy) GrowLun(ctx context.Context, r *shelfv1.GrowLunRequest) (*shelfv1.Lun, error) {
	l, err := p.GetLun(ctx, &shelfv1.GetLunRequest{Id: r.GetId()})
	if err == nil && l.GetSizeBytes() < r.GetSizeBytes() {
		return nil, status.Errorf(codes.OutOfRange, "e%d.%d has %d bytes, and nobody here can make it larger", p.cfg.Shelf, r.GetId().GetSlot(), l.GetSizeBytes())
	}
	return l, err
}

// ListLuns implements the API: one page of the slots that volumes own.
func (p *Proxy) ListLuns(ctx context.Context, _ *shelfv1.ListLunsRequest) (*shelfv1.ListLunsResponse, error) {
	answer := &shelfv1.ListLunsResponse{}
	for _, n := range p.cfg.Slots {
		s := p.slots[n]
		rec, err := p.intent(ctx, s.addr)
		if err != nil {
			return nil, err
		}
		if a, err := s.answer(); err == nil && rec != nil {
			answer.Luns = append(answer.Luns, p.lun(s, a, rec))
		}
	}
	return answer, nil
}

// GetCapacity implements the API: every LUN of the pool, and why it cannot be taken.
func (p *Proxy) GetCapacity(context.Context, *shelfv1.GetCapacityRequest) (*shelfv1.GetCapacityResponse, error) {
	c := &shelfv1.GetCapacityResponse{Fixed: true}
	for _, n := range slices.Sorted(slices.Values(p.cfg.Slots)) {
		s := p.slots[n]
		size, refused, data := s.offer()
		c.Offers = append(c.Offers, &shelfv1.Offer{Slot: uint32(n), SizeBytes: uint64(size), Refused: refused, Data: data})
		c.TotalBytes += uint64(size)
		if refused == "" {
			c.AvailableBytes += uint64(size)
			c.MaxLunBytes = max(c.MaxLunBytes, uint64(size))
			c.FreeSlots++
		}
	}
	return c, nil
}

// offer is a LUN's size in bytes and why it cannot be taken, as far as is known without asking; with data only for what is on it.
func (s *slot) offer() (size int64, refused string, data bool) {
	a, err := s.answer()
	if err != nil {
		return 0, status.Convert(err).Message(), false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case a.ConfigString != "":
		refused = fmt.Sprintf("has the config string %q", a.ConfigString)
	case !reservable(a.Reserved):
		refused = fmt.Sprintf("is reserved to %s", a.Reserved)
	default:
		refused, data = s.refusal, s.refusal != ""
	}
	return sizeOf(a), refused, data
}

// reservable says whether nobody uses a target that is free: nobody has it reserved, or a proxy left it closed.
func reservable(list []aoe.MAC) bool {
	return len(list) == 0 || slices.Equal(list, []aoe.MAC{Sentinel})
}
