package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	repetitions = 3
	nativeTime  = 2 * time.Second
	nativeRamp  = 300 * time.Millisecond
	lunBytes    = 64 << 20
	// shapedRate is what each of two paths carries: far below what a processor can, so that the paths are the limit.
	shapedRate = "500mbit"
)

// job is what is asked of every stack.
type job struct {
	name, rw, bs string
	bytes, depth int
	lossy        bool // also with loss
}

var jobs = []job{
	{bench.Read4k, "randread", "4Ki", 4 << 10, 32, true},
	{bench.Write4k, "randwrite", "4Ki", 4 << 10, 32, true},
	{bench.Read8k, "randread", "8Ki", 8 << 10, 32, false},
	{bench.Write8k, "randwrite", "8Ki", 8 << 10, 32, false},
	{bench.Read4k1, "randread", "4Ki", 4 << 10, 1, false},
	{bench.Read128k, "read", "128Ki", 128 << 10, 32, true},
	{bench.Write128k, "write", "128Ki", 128 << 10, 32, true},
}

// arguments are those of `aoe-csi bench`.
func (j *job) arguments(addr, interfaces string, more ...string) []string {
	return append([]string{"bench", addr, "--interface", interfaces, "--rw", j.rw, "--bs", j.bs, "--depth", strconv.Itoa(j.depth),
		"--time", nativeTime.String(), "--ramp", nativeRamp.String(), "-o", "json"}, more...)
}

// frames are the sizes that a job's frames have on the wire, and the payload of a round trip; 128k goes in frames of 16 sectors.
func (j *job) frames() (request, answer, payload int) {
	payload = min(j.bytes, 8<<10)
	if strings.HasSuffix(j.rw, "write") {
		return aoe.ATALen + payload, 60, payload
	}
	return 60, aoe.ATALen + payload, payload
}

// native measures every job over every stack, the repetitions one after the other.
func native(ctx context.Context, binary, out string) error {
	r, err := newRig(ctx, binary)
	if err != nil {
		return errors.Join(err, r.close())
	}
	err = r.measureAll(out)
	return errors.Join(err, r.close())
}

func (r *rig) measureAll(out string) error {
	if err := r.serve(); err != nil {
		return err
	}
	if err := r.fill(); err != nil {
		return err
	}
	for run := 1; run <= repetitions; run++ {
		for i := range jobs {
			j := &jobs[i]
			for _, s := range []struct {
				name    string
				measure func(*job) (bench.Measurement, error)
			}{
				{bench.Wire, r.wire},
				{bench.Bare, func(j *job) (bench.Measurement, error) { return r.drive(j, r.target, "e7.1", "c0") }},
				{bench.BareVblade, func(j *job) (bench.Measurement, error) { return r.drive(j, r.vblade, "e3.1", "c0") }},
				{bench.Lossy, r.driveLossy},
			} {
				if s.name == bench.Lossy && !j.lossy {
					continue
				}
				if err := r.book(out, run, s.name, j, s.measure); err != nil {
					return err
				}
			}
		}
	}
	for i := range jobs[:2] {
		if err := r.book(out, 1, bench.Million, &jobs[i], r.driveMillion); err != nil {
			return err
		}
	}
	for run := 1; run <= repetitions; run++ {
		if err := r.book(out, run, bench.Pulled, &jobs[0], r.drivePulled); err != nil {
			return err
		}
	}
	if err := r.book(out, 1, bench.Slowed, &jobs[len(jobs)-1], r.driveSlowed); err != nil {
		return err
	}
	if err := r.book(out, 1, bench.Many, &job{name: bench.Idle}, r.many); err != nil {
		return err
	}
	if err := r.shape(); err != nil {
		return err
	}
	wide := &job{bench.Read128k, "read", "128Ki", 128 << 10, 32, false}
	for run := 1; run <= repetitions; run++ {
		if err := r.book(out, run, bench.OnePath, wide, func(j *job) (bench.Measurement, error) { return r.drive(j, r.target, "e7.1", "c0") }); err != nil {
			return err
		}
		if err := r.book(out, run, bench.TwoPaths, wide, func(j *job) (bench.Measurement, error) { return r.drive(j, r.target, "e7.1", "c0,c1") }); err != nil {
			return err
		}
	}
	return nil
}

// book measures once, says so and writes it down. BENCH_ONLY leaves out other stacks.
func (r *rig) book(out string, run int, stack string, j *job, measure func(*job) (bench.Measurement, error)) error {
	if only := strings.ReplaceAll(os.Getenv("BENCH_ONLY"), "_", " "); !strings.Contains(stack, only) {
		return nil
	}
	m, err := measure(j)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", stack, j.name, err)
	}
	m.Where, m.Stack, m.Job = bench.WhereNative, stack, j.name
	fmt.Printf("%s native %d/%d %-24s %-18s %9.0f IOPS %8.1f MB/s %7.0f µs\n", time.Now().Format(time.TimeOnly), run, repetitions, stack, j.name, m.IOPS, m.MBps, m.Mean)
	return bench.Append(out, m)
}

// wire measures the bare ping-pong with the frames of a job.
func (r *rig) wire(j *job) (m bench.Measurement, err error) {
	request, answer, payload := j.frames()
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	server, err := r.start(r.server, self, "answer", "s0", strconv.Itoa(answer))
	if err != nil {
		return m, err
	}
	defer server.kill()
	before, began := server.cpu(), time.Now()
	text, err := r.run(r.client, self, "ask", "c0", r.mac("s0"), strconv.Itoa(request), strconv.Itoa(j.depth), nativeTime.String())
	if err != nil {
		return m, err
	}
	var n, took, cpu int64
	if _, err := fmt.Sscan(text, &n, &took, &cpu); err != nil {
		return m, fmt.Errorf("answer of ask: %q: %w", text, err)
	}
	theirs := time.Duration(float64(server.cpu()-before) * float64(took) / float64(time.Since(began)))
	bytes := float64(n) * float64(payload)
	seconds := time.Duration(took).Seconds()
	return bench.Measurement{
		IOPS: float64(n) / seconds, MBps: bytes / 1e6 / seconds, Mean: float64(took) / 1e3 * float64(j.depth) / float64(max(n, 1)),
		CPU: (time.Duration(cpu) + theirs).Seconds() / max(bytes, 1) * 1e9,
	}, nil
}

// drive measures `aoe-csi bench` against a server.
func (r *rig) drive(j *job, server *process, addr, interfaces string) (m bench.Measurement, err error) {
	before, began := server.cpu(), time.Now()
	text, err := r.run(r.client, r.binary, j.arguments(addr, interfaces)...)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, fmt.Errorf("answer of aoe-csi bench: %q: %w", text, err)
	}
	busy := (server.cpu() - before).Seconds() / (time.Since(began).Seconds() - 0.2) // the client starts in about that
	m.CPU += busy / max(m.MBps, 1) * 1e3
	return m, nil
}

// fill writes all of the LUNs once, so that reads find more than holes.
func (r *rig) fill() error {
	for _, addr := range []string{"e7.1", "e3.1"} {
		if _, err := r.run(r.client, r.binary, "bench", addr, "--interface", "c0", "--rw", "write", "--bs", "128Ki", "--time", "1s", "--ramp", "0s"); err != nil {
			return fmt.Errorf("fill %s: %w", addr, err)
		}
	}
	return nil
}

// serve starts the servers.
func (r *rig) serve() (err error) {
	r.target, err = r.start(r.server, r.binary, "target", "--shelf", "7", "--interface", "s0,s1", "--dir", filepath.Join(r.dir, "luns"), "--run-dir", r.dir)
	if err != nil {
		return err
	}
	socket := filepath.Join(r.dir, "shelf-7-api.sock")
	lun := func(args ...string) error {
		_, err := r.run(r.server, r.binary, append([]string{"lun", "--socket", socket}, args...)...)
		return err
	}
	if err := eventually(func() error { return lun("list") }); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	err = lun("create", "e7.1", "--size", strconv.Itoa(lunBytes))
	if err == nil {
		err = lun("admit", "e7.1", "--node", "bench", "--mac", r.mac("c0")+","+r.mac("c1"))
	}
	if err != nil {
		return err
	}
	r.vblade, err = r.serveForeign("e3.1", lunBytes)
	return err
}

// serveForeign starts a vblade with a LUN of zeroes.
func (r *rig) serveForeign(addr string, bytes int) (*process, error) {
	file := filepath.Join(r.dir, "vblade-"+addr)
	if err := os.WriteFile(file, make([]byte, bytes), 0o600); err != nil {
		return nil, err
	}
	shelf, slot, _ := strings.Cut(strings.TrimPrefix(addr, "e"), ".")
	return r.start(r.server, "vblade", shelf, slot, "s0", file)
}

// eventually polls until check returns nil, for ten seconds.
func eventually(check func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
