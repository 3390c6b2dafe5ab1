package bench

// Stacks that are compared.
const (
	UBLK        = "aoe-csi ublk"
	NBD         = "aoe-csi NBD"
	KernelAoE   = "kernel aoe + vblade"
	KernelOurs  = "kernel aoe + our target"
	NVMe        = "NVMe/TCP + nvmet"
	NBDServer   = "NBD + nbd-server"
	ISCSI       = "open-iscsi + tgt"
	Wire        = "bare ping-pong"
	Bare        = "aoe-csi bench"          // no block layer, our target
	BareVblade  = "aoe-csi bench + vblade" // the same client, vblade
	OnePath     = "aoe-csi bench, one path"
	TwoPaths    = "aoe-csi bench, two paths"
	Lossy       = "aoe-csi bench, 1 % loss" // of the frames in each direction
	Million     = "aoe-csi bench, a million"
	Slowed      = "aoe-csi bench, slow path" // that keeps each frame for long
	Pulled      = "aoe-csi bench, path pulled"
	Many        = "aoe-csi bench, 256 volumes"
	WhereVM     = "vm"
	WhereNative = "native"
)

// Jobs, named as fio names what they do.
const (
	Read4k    = "4k randread qd32"
	Write4k   = "4k randwrite qd32"
	Read128k  = "128k read qd32"
	Write128k = "128k write qd32"
	Read4k1   = "4k randread qd1"
	Read8k    = "8k randread qd32"
	Write8k   = "8k randwrite qd32"
	Idle      = "idle"
)

// A rule is one thing that a run has to show.
type rule struct {
	key                    string
	where, job, mine, peer string
	// figure is IOPS, or MBps where requests of one and frames of the other differ in size, or Mean: a latency, less is better.
	figure     func(*Measurement) float64
	least, aim float64
	most       float64 // instead of least
}

// A rule without a peer bounds the figure itself.
func (r *rule) absolute() bool { return r.peer == "" }

func iops(m *Measurement) float64 { return m.IOPS }
func mbps(m *Measurement) float64 { return m.MBps }
func mean(m *Measurement) float64 { return m.Mean }

func initiatorAllocations(m *Measurement) float64 { return m.InitiatorAllocations }
func targetAllocations(m *Measurement) float64    { return m.TargetAllocations }

// What a volume may cost: 4 MiB beside 32 of the process, and no processor while nothing is done with it.
const (
	budgetProcess, budgetVolume = 32, 4
	idleMost                    = 0.02
)

// timeouts is the slowest request in retransmission timeouts.
func timeouts(m *Measurement) float64 {
	if m.Timeout == 0 {
		return -1
	}
	return m.Longest / m.Timeout
}

// poolUse is how much of what it may have the transmit pool has.
func poolUse(m *Measurement) float64 {
	if m.PoolCeiling == 0 {
		return -1
	}
	return float64(m.PoolFrames) / float64(m.PoolCeiling)
}

func scaled(figure func(*Scale) float64) func(*Measurement) float64 {
	return func(m *Measurement) float64 {
		if m.Scale == nil {
			return -1
		}
		return figure(m.Scale)
	}
}

// rules are what a run of `make bench` must show; those without a bound are reported only.
var rules = []rule{
	{"ublk : kernel aoe + vblade, 4k random read", WhereVM, Read4k, UBLK, KernelAoE, iops, 1.0, 1.5, 0},
	{"ublk : kernel aoe + vblade, 4k random write", WhereVM, Write4k, UBLK, KernelAoE, iops, 1.0, 1.5, 0},
	{"ublk : kernel aoe + vblade, 128k read", WhereVM, Read128k, UBLK, KernelAoE, mbps, 1.1, 1.5, 0},
	{"ublk : kernel aoe + vblade, 128k write", WhereVM, Write128k, UBLK, KernelAoE, mbps, 1.0, 1.5, 0},
	{"ublk : bare ping-pong, 128k read", WhereVM, Read128k, UBLK, Wire, mbps, 0.6, 0.8, 0},
	{"ublk : bare ping-pong, 128k write", WhereVM, Write128k, UBLK, Wire, mbps, 0.6, 0.8, 0},
	{"ublk : kernel aoe + vblade, 4k read latency at depth 1", WhereVM, Read4k1, UBLK, KernelAoE, mean, 0, 0, 1.2},
	{"NBD : nbd-server over TCP, 4k random read", WhereVM, Read4k, NBD, NBDServer, iops, 1.0, 0, 0},
	{"NBD : nbd-server over TCP, 4k random write", WhereVM, Write4k, NBD, NBDServer, iops, 1.0, 0, 0},
	{"our target : vblade, kernel aoe, 4k random read", WhereVM, Read4k, KernelOurs, KernelAoE, iops, 1.2, 0, 0},
	{"our target : vblade, kernel aoe, 4k random write", WhereVM, Write4k, KernelOurs, KernelAoE, iops, 1.2, 0, 0},
	{"ublk : NVMe/TCP, 4k random read", WhereVM, Read4k, UBLK, NVMe, iops, 0, 0, 0},
	{"ublk : NVMe/TCP, 4k random write", WhereVM, Write4k, UBLK, NVMe, iops, 0, 0, 0},
	{"ublk : NVMe/TCP, 128k read", WhereVM, Read128k, UBLK, NVMe, mbps, 0, 0, 0},
	{"ublk : NVMe/TCP, 128k write", WhereVM, Write128k, UBLK, NVMe, mbps, 0, 0, 0},
	{"ublk : NVMe/TCP, 4k read latency at depth 1", WhereVM, Read4k1, UBLK, NVMe, mean, 0, 0, 0},

	{"initiator + target : bare ping-pong, 4k reads", WhereNative, Read4k, Bare, Wire, iops, 0.7, 0.9, 0},
	{"initiator + target : bare ping-pong, 4k writes", WhereNative, Write4k, Bare, Wire, iops, 0.7, 0.9, 0},
	{"initiator + target : bare ping-pong, 8k reads", WhereNative, Read8k, Bare, Wire, iops, 0.7, 0.9, 0},
	{"initiator + target : bare ping-pong, 8k writes", WhereNative, Write8k, Bare, Wire, iops, 0.7, 0.9, 0},
	{"two paths : one path, both shaped, 128k reads", WhereNative, Read128k, TwoPaths, OnePath, mbps, 1.8, 0, 0},
	{"1 % loss : none, 4k random read", WhereNative, Read4k, Lossy, Bare, iops, 0.85, 0, 0},
	{"1 % loss : none, 4k random write", WhereNative, Write4k, Lossy, Bare, iops, 0.85, 0, 0},
	{"1 % loss : none, 128k read", WhereNative, Read128k, Lossy, Bare, mbps, 0.85, 0, 0},
	{"1 % loss : none, 128k write", WhereNative, Write128k, Lossy, Bare, mbps, 0.85, 0, 0},
	{"allocations per I/O in the initiator, a million 4k reads", WhereNative, Read4k, Million, "", initiatorAllocations, 0, 0, 0.001},
	{"allocations per I/O in the initiator, a million 4k writes", WhereNative, Write4k, Million, "", initiatorAllocations, 0, 0, 0.001},
	{"allocations per I/O in the target, a million 4k reads", WhereNative, Read4k, Million, "", targetAllocations, 0, 0, 0.001},
	{"allocations per I/O in the target, a million 4k writes", WhereNative, Write4k, Million, "", targetAllocations, 0, 0, 0.001},
	{"one of two paths pulled: slowest 4k read in retransmission timeouts", WhereNative, Read4k, Pulled, "", timeouts, 0, 0, 2},
	{"each frame kept for 50 ms: pool frames : ceiling, 128k write", WhereNative, Write128k, Slowed, "", poolUse, 0, 0, 1},
	{"256 volumes: memory of the initiator : budget", WhereNative, Idle, Many, "",
		scaled(func(s *Scale) float64 { return s.Initiator / (budgetProcess + budgetVolume*float64(s.Volumes)) }), 0, 0, 1},
	{"256 volumes: attach p99, ms", WhereNative, Idle, Many, "", scaled(func(s *Scale) float64 { return s.AttachP99 }), 0, 0, 250},
	{"256 volumes: idle CPU of the initiator, part of one", WhereNative, Idle, Many, "", scaled(func(s *Scale) float64 { return s.IdleInitiator }), 0, 0, idleMost},
	{"256 volumes: idle CPU of the targets, part of one", WhereNative, Idle, Many, "", scaled(func(s *Scale) float64 { return s.IdleTarget }), 0, 0, idleMost},
	{"our target : vblade, our initiator, 4k reads", WhereNative, Read4k, Bare, BareVblade, iops, 0, 0, 0},
	{"our target : vblade, our initiator, 4k writes", WhereNative, Write4k, Bare, BareVblade, iops, 0, 0, 0},
}

// Ratio is what came of one rule.
type Ratio struct {
	Value   float64 `json:"value"`
	AtLeast float64 `json:"atLeast,omitempty"`
	AtMost  float64 `json:"atMost,omitempty"`
	Aim     float64 `json:"aim,omitempty"`
	// OK is false if the bound is missed, or if there is one and something was not measured.
	OK bool `json:"ok"`
}

// Ratios applies the rules for the places that were measured to medians. names are in the rules' order.
func Ratios(medians []Measurement, places ...string) (names []string, ratios map[string]Ratio) {
	ratios = map[string]Ratio{}
	wanted := map[string]bool{}
	for _, p := range places {
		wanted[p] = true
	}
	for _, r := range rules {
		if !wanted[r.where] {
			continue
		}
		out := Ratio{AtLeast: r.least, AtMost: r.most, Aim: r.aim}
		mine, peer := find(medians, r.where, r.mine, r.job), find(medians, r.where, r.peer, r.job)
		if mine != nil && peer != nil && r.figure(peer) > 0 && r.figure(mine) > 0 {
			out.Value = r.figure(mine) / r.figure(peer)
		}
		if r.absolute() {
			if mine != nil {
				out.Value = r.figure(mine)
			}
			out.OK = mine != nil && out.Value >= 0 && out.Value <= r.most
			names = append(names, r.key)
			ratios[r.key] = out
			continue
		}
		out.OK = (r.least == 0 && r.most == 0) || out.Value > 0 && out.Value >= r.least && (r.most == 0 || out.Value <= r.most)
		names = append(names, r.key)
		ratios[r.key] = out
	}
	return names, ratios
}
