package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Measurement is one run of one job over one stack of software.
type Measurement struct {
	// Where is "vm" or "native"; figures of the two have nothing to do with each other.
	Where string  `json:"where"`
	Stack string  `json:"stack"`
	Job   string  `json:"job"`
	IOPS  float64 `json:"iops"`
	MBps  float64 `json:"mbPerSecond"` // of payload, 10⁶ bytes
	Mean  float64 `json:"meanMicroseconds"`
	P50   float64 `json:"p50Microseconds,omitempty"`
	P99   float64 `json:"p99Microseconds,omitempty"`
	// CPU seconds per 10⁹ bytes of payload: of both ends and, in a VM, of all there is in it.
	CPU float64 `json:"cpuSecondsPerGB,omitempty"`
	// What the initiator's transmit pool did meanwhile, where it was asked.
	PoolFrames  int    `json:"poolFrames,omitempty"`
	PoolCeiling int    `json:"poolCeiling,omitempty"`
	PoolGrown   uint64 `json:"poolGrown,omitempty"`
	PoolCapped  uint64 `json:"poolCeilingHits,omitempty"`
	PoolWaits   uint64 `json:"poolWaits,omitempty"`
	// Retransmits of the initiator.
	Retransmits uint64 `json:"retransmits,omitempty"`
	// Requests is how many were measured.
	Requests uint64 `json:"requests,omitempty"`
	// Objects on Go's heap allocated for each request, by both processes.
	InitiatorAllocations float64 `json:"initiatorAllocationsPerIO"`
	TargetAllocations    float64 `json:"targetAllocationsPerIO"`
	// Longest is what the slowest request took, Timeout after what time a path sent a frame again.
	Longest float64 `json:"longestMicroseconds,omitempty"`
	Timeout float64 `json:"timeoutMicroseconds,omitempty"`
	Scale   *Scale  `json:"scale,omitempty"`
}

// Scale is what many volumes on one node cost.
type Scale struct {
	Volumes int `json:"volumes"`
	// Attach times in milliseconds, of one volume after the other.
	AttachP50 float64 `json:"attachP50Milliseconds"`
	AttachP99 float64 `json:"attachP99Milliseconds"`
	// Resident memory in MiB: of the initiator's process without a volume and with all, and of the targets'.
	InitiatorEmpty float64 `json:"initiatorEmptyMiB"`
	Initiator      float64 `json:"initiatorMiB"`
	Target         float64 `json:"targetMiB,omitempty"`
	// CPU seconds used in an idle second, and when that was measured.
	IdleInitiator    float64 `json:"idleInitiatorCPU"`
	IdleTarget       float64 `json:"idleTargetCPU,omitempty"`
	IdleFrom, IdleTo time.Time
}

// Microseconds is a duration as Measurement has it.
func Microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// OwnCPU is the time that this process has used.
func OwnCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ResidentMiB is how much memory a process has.
func ResidentMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kB float64
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, err := fmt.Sscan(rest, &kB)
			return kB / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory", pid)
}

// Read reads measurements from a file of JSON, one after the other.
func Read(path string) ([]Measurement, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Measurement
	for d := json.NewDecoder(f); d.More(); {
		var m Measurement
		if err := d.Decode(&m); err != nil {
			return nil, fmt.Errorf("measurements in %s: %w", path, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// Append writes a measurement to the end of a file that Read reads.
func Append(path string, m Measurement) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return err
}

// Median is the median of each figure over the runs of a job, in the order of their first appearance.
func Median(all []Measurement) []Measurement {
	var medians []Measurement
	for _, m := range all {
		if find(medians, m.Where, m.Stack, m.Job) != nil {
			continue
		}
		of := func(figure func(*Measurement) float64) float64 {
			var values []float64
			for i := range all {
				if k := &all[i]; k.Where == m.Where && k.Stack == m.Stack && k.Job == m.Job {
					values = append(values, figure(k))
				}
			}
			return median(values)
		}
		medians = append(medians, Measurement{
			Where: m.Where, Stack: m.Stack, Job: m.Job,
			IOPS: of(func(m *Measurement) float64 { return m.IOPS }), MBps: of(func(m *Measurement) float64 { return m.MBps }),
			Mean: of(func(m *Measurement) float64 { return m.Mean }), P50: of(func(m *Measurement) float64 { return m.P50 }),
			P99: of(func(m *Measurement) float64 { return m.P99 }), CPU: of(func(m *Measurement) float64 { return m.CPU }),
			PoolFrames:           int(of(func(m *Measurement) float64 { return float64(m.PoolFrames) })),
			PoolCeiling:          int(of(func(m *Measurement) float64 { return float64(m.PoolCeiling) })),
			PoolGrown:            uint64(of(func(m *Measurement) float64 { return float64(m.PoolGrown) })),
			PoolCapped:           uint64(of(func(m *Measurement) float64 { return float64(m.PoolCapped) })),
			PoolWaits:            uint64(of(func(m *Measurement) float64 { return float64(m.PoolWaits) })),
			Retransmits:          uint64(of(func(m *Measurement) float64 { return float64(m.Retransmits) })),
			Requests:             uint64(of(func(m *Measurement) float64 { return float64(m.Requests) })),
			InitiatorAllocations: of(func(m *Measurement) float64 { return m.InitiatorAllocations }),
			TargetAllocations:    of(func(m *Measurement) float64 { return m.TargetAllocations }),
			Longest:              of(func(m *Measurement) float64 { return m.Longest }),
			Timeout:              of(func(m *Measurement) float64 { return m.Timeout }), Scale: m.Scale,
		})
	}
	return medians
}

// find returns the measurement of a job, nil if there is none.
func find(all []Measurement, where, stack, job string) *Measurement {
	i := slices.IndexFunc(all, func(m Measurement) bool { return m.Where == where && m.Stack == stack && m.Job == job })
	if i < 0 {
		return nil
	}
	return &all[i]
}

func median(values []float64) float64 {
	slices.SortFunc(values, cmp.Compare[float64])
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}
