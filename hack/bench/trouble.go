package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
)

// lossOf is a classic BPF program for tc that drops a part of what comes in, by chance: not every kernel has netem.
func lossOf(part float64) string {
	const (
		loadRandom  = "32 0 0 4294963256" // ld #random
		passUnless  = "53 0 1"            // jge #, next, the one after it
		returnOK    = "6 0 0 0"
		returnShoot = "6 0 0 2"
	)
	return fmt.Sprintf("4,%s,%s %d,%s,%s", loadRandom, passUnless, uint32(min(part*(math.MaxUint32+1), math.MaxUint32)), returnOK, returnShoot)
}

// lose has both ends of a cable lose a part of the frames that arrive; 0 ends it.
func (r *rig) lose(cable string, part float64) error {
	for _, end := range [][2]string{{r.client, "c" + cable}, {r.server, "s" + cable}} {
		if part == 0 {
			if _, err := r.run("", "tc", "-n", end[0], "qdisc", "del", "dev", end[1], "clsact"); err != nil {
				return err
			}
			continue
		}
		if _, err := r.run("", "tc", "-n", end[0], "qdisc", "add", "dev", end[1], "clsact"); err != nil {
			return err
		}
		if _, err := r.run("", "tc", "-n", end[0], "filter", "add", "dev", end[1], "ingress", "bpf", "da", "bytecode", lossOf(part)); err != nil {
			return err
		}
	}
	return nil
}

// driveLossy measures with one frame in a hundred lost in each direction.
func (r *rig) driveLossy(j *job) (m bench.Measurement, err error) {
	if err := r.lose("0", 0.01); err != nil {
		return m, err
	}
	m, err = r.drive(j, r.target, "e7.1", "c0")
	if err != nil {
		return m, err
	}
	return m, r.lose("0", 0)
}

// million counts what both processes allocate for each of a million requests.
const million = 1_000_000

func (r *rig) driveMillion(j *job) (m bench.Measurement, err error) {
	shelf, err := r.shelf(7)
	if err != nil {
		return m, err
	}
	defer shelf.close()
	if _, err := shelf.allocations(r.ctx); err != nil { // the connection is made
		return m, err
	}
	before, err := shelf.allocations(r.ctx)
	if err != nil {
		return m, err
	}
	text, err := r.run(r.client, r.binary, j.arguments("e7.1", "c0", "--requests", fmt.Sprint(million))...)
	if err != nil {
		return m, err
	}
	after, err := shelf.allocations(r.ctx)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, fmt.Errorf("answer of aoe-csi bench: %q: %w", text, err)
	}
	if m.Requests < million {
		return m, fmt.Errorf("%d requests were measured, want %d", m.Requests, million)
	}
	// The target's include its part in the attachment and in the questions.
	m.TargetAllocations = float64(after-before) / float64(m.Requests)
	return m, nil
}

// drivePulled measures over two paths, one of which goes silent in the middle.
func (r *rig) drivePulled(j *job) (m bench.Measurement, err error) {
	pulled := make(chan error, 1)
	pull := time.AfterFunc(nativeRamp+nativeTime/2, func() { pulled <- r.lose("1", 1) })
	m, err = r.drive(j, r.target, "e7.1", "c0,c1")
	if pull.Stop() {
		return m, errors.Join(err, errors.New("the measurement was over before the path was pulled"))
	}
	if err := errors.Join(err, <-pulled, r.lose("1", 0)); err != nil {
		return m, err
	}
	fmt.Printf("slowest request %.1f ms, retransmission timeout %.1f ms\n", m.Longest/1e3, m.Timeout/1e3)
	return m, nil
}

// slowRate keeps a window of 64 frames of 8.7 kB for 50 ms in the interface's queue.
const slowRate = "89mbit"

// driveSlowed measures over an interface that keeps what it is given for long: what is sent must be held back by the window, not by memory.
func (r *rig) driveSlowed(j *job) (m bench.Measurement, err error) {
	if _, err := r.run("", "tc", "-n", r.client, "qdisc", "add", "dev", "c0", "root", "tbf", "rate", slowRate, "burst", "18k", "limit", "64m"); err != nil {
		return m, err
	}
	m, err = r.drive(j, r.target, "e7.1", "c0")
	if err != nil {
		return m, err
	}
	fmt.Printf("slow path: pool %d of %d frames, grown %d, at the ceiling %d times, %d retransmissions\n", m.PoolFrames, m.PoolCeiling, m.PoolGrown, m.PoolCapped, m.Retransmits)
	_, err = r.run("", "tc", "-n", r.client, "qdisc", "del", "dev", "c0", "root")
	return m, err
}
