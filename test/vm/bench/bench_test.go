//go:build vm

// Package bench measures block devices with fio: ours, and what a user would pick instead. Both ends are in the VM, on one cable.
// hack/bench.sh runs it and judges what it leaves in /results/bench.json.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// What hack/bench.sh may say in the environment.
var (
	repetitions = number("BENCH_RUNS", 3)    // of each job over each stack
	seconds     = number("BENCH_SECONDS", 4) // that a job is measured
	only        = os.Getenv("BENCH_ONLY")    // measure only stacks with one of these in their name, separated by commas
)

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// lunBytes is what every stack serves, from a file in a tmpfs.
const lunBytes = 64 << 20

// job is a run of fio.
type job struct {
	name, rw, bs string
	bytes, depth int
}

var jobs = []job{
	{bench.Read4k, "randread", "4k", 4 << 10, 32},
	{bench.Write4k, "randwrite", "4k", 4 << 10, 32},
	{bench.Read128k, "read", "128k", 128 << 10, 32},
	{bench.Write128k, "write", "128k", 128 << 10, 32},
	{bench.Read4k1, "randread", "4k", 4 << 10, 1},
}

// stack makes a block device; the second result takes it down again.
type stack struct {
	name string
	up   func(*rig) (device string, down func())
	full bool // only for those who ask for it
}

// wanted says whether a stack is to be measured.
func (s *stack) wanted() bool {
	if only == "" {
		return !s.full
	}
	return slices.ContainsFunc(strings.Split(strings.ReplaceAll(only, "_", " "), ","), func(part string) bool { return strings.Contains(s.name, part) })
}

var stacks = []stack{
	{name: bench.UBLK, up: func(r *rig) (string, func()) { return r.ours("ublk") }},
	{name: bench.NBD, up: func(r *rig) (string, func()) { return r.ours("nbd") }},
	{name: bench.KernelAoE, up: (*rig).kernelVblade},
	{name: bench.KernelOurs, up: (*rig).kernelOurs},
	{name: bench.NVMe, up: (*rig).nvme},
	{name: bench.NBDServer, up: (*rig).nbdServer},
	{name: bench.ISCSI, up: (*rig).iscsi, full: true},
}

// rig is the two ends.
type rig struct {
	t      *testing.T
	l      *lab.Lab
	guest  *lab.Host
	far    *lab.Host
	filled map[string]bool
}

func (r *rig) log(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// TestMain is one end of the bare ping-pong, too: "bench.test answer IF SIZE" in the other end's namespace.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "answer" {
		size, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = bench.Answer(os.Args[2], size, nil)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestBench measures everything, the repetitions one after the other, so that what drifts drifts for all.
func TestBench(t *testing.T) {
	guest, far := lab.Cable(t)
	r := &rig{t: t, l: guest.Lab(), guest: guest, far: far, filled: map[string]bool{}}
	r.log("fio %s", strings.TrimSpace(r.l.Run("fio", "--version")))
	r.l.Run("ip", "address", "add", near4+"/24", "dev", guest.If)
	far.Run("ip", "address", "add", far4+"/24", "dev", far.If)
	for run := 1; run <= repetitions; run++ {
		for i := range stacks {
			s := &stacks[i]
			if s.wanted() {
				r.measureStack(run, s)
			}
		}
		for i := range jobs {
			if j := &jobs[i]; j.depth > 1 {
				r.book(run, bench.Wire, j, r.wire(j))
			}
		}
	}
}

func (r *rig) measureStack(run int, s *stack) {
	device, down := s.up(r)
	defer down()
	if !r.filled[s.name] {
		r.l.Run("dd", "if=/dev/zero", "of="+device, "bs=1M", fmt.Sprintf("count=%d", lunBytes>>20), "oflag=direct")
		r.filled[s.name] = true
	}
	for i := range jobs {
		j := &jobs[i]
		r.book(run, s.name, j, r.fio(device, j))
	}
}

func (r *rig) book(run int, stack string, j *job, m bench.Measurement) {
	m.Where, m.Stack, m.Job = bench.WhereVM, stack, j.name
	r.log("vm %d/%d %-24s %-18s %8.0f IOPS %7.1f MB/s %7.0f µs %6.2f CPU s/GB", run, repetitions, stack, j.name, m.IOPS, m.MBps, m.Mean, m.CPU)
	dir := os.Getenv("AOE_CSI_RESULTS")
	if dir == "" {
		dir = r.l.Dir()
	}
	if err := bench.Append(filepath.Join(dir, "bench.json"), m); err != nil {
		r.t.Fatal(err)
	}
}

// wire measures the bare ping-pong with the frames of a job. A large request goes in frames of 8.7 kB.
func (r *rig) wire(j *job) bench.Measurement {
	const header, large = 36, 17 * 512
	payload := min(j.bytes, large)
	request, answer := 60, header+payload
	if strings.HasSuffix(j.rw, "write") {
		request, answer = answer, request
	}
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	p := r.far.Start(self, "answer", r.far.If, fmt.Sprint(answer))
	defer p.Kill()
	mac, err := exec.Command("ip", "netns", "exec", r.far.NS, "cat", "/sys/class/net/"+r.far.If+"/address").Output()
	if err != nil {
		r.t.Fatal(err)
	}
	before := busy(r.t)
	n, took, err := bench.Ask(r.guest.If, parseMAC(r.t, strings.TrimSpace(string(mac))), request, j.depth, time.Duration(seconds)*time.Second)
	if err != nil {
		r.t.Fatal(err)
	}
	bytes := float64(n) * float64(payload)
	return bench.Measurement{
		IOPS: float64(n) / took.Seconds(), MBps: bytes / 1e6 / took.Seconds(),
		Mean: bench.Microseconds(took) * float64(j.depth) / float64(max(n, 1)), CPU: (busy(r.t) - before).Seconds() / max(bytes, 1) * 1e9,
	}
}
