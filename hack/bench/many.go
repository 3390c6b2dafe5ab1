package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// fullShelf has a LUN in each of its slots; another shelf has one more, since a node takes 256 volumes.
	fullShelf, otherShelf = 9, 10
	manyBytes             = 1 << 20
	idleTime              = 10 * time.Second
)

// many attaches 256 volumes and says what they cost while nothing is done with them.
func (r *rig) many(*job) (m bench.Measurement, err error) {
	var servers []*process
	for number, slots := range map[int]int{fullShelf: int(aoe.MaxSlot) + 1, otherShelf: 1} {
		p, err := r.extraShelf(number, slots, manyBytes)
		if err != nil {
			return m, err
		}
		servers = append(servers, p)
		defer p.kill()
	}
	type sample struct {
		at  time.Time
		cpu time.Duration
	}
	var samples []sample
	stop, stopped := make(chan struct{}), make(chan struct{})
	look := func() {
		s := sample{at: time.Now()}
		for _, p := range servers {
			s.cpu += p.cpu()
		}
		samples = append(samples, s)
	}
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(idleTime / 10); ; {
			select {
			case <-tick.C:
				look()
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	text, err := r.run(r.client, r.binary, "bench", fmt.Sprintf("e%d.0-%d", fullShelf, aoe.MaxSlot), fmt.Sprintf("e%d.0", otherShelf),
		"--interface", "c0", "--idle", idleTime.String(), "-o", "json")
	close(stop)
	<-stopped
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.Scale == nil {
		return m, fmt.Errorf("answer of aoe-csi bench: %q: %w", text, err)
	}
	idle := slices.DeleteFunc(samples, func(s sample) bool { return s.at.Before(m.Scale.IdleFrom) || s.at.After(m.Scale.IdleTo) })
	if len(idle) < 2 {
		return m, fmt.Errorf("%d samples of the targets' CPU in the idle time", len(idle))
	}
	first, last := idle[0], idle[len(idle)-1]
	m.Scale.IdleTarget = float64(last.cpu-first.cpu) / float64(last.at.Sub(first.at))
	for _, p := range servers {
		mib, err := bench.ResidentMiB(p.cmd.Process.Pid)
		if err != nil {
			return m, err
		}
		m.Scale.Target += mib
	}
	s := m.Scale
	fmt.Printf("%d volumes: attached in %.1f ms (p50; p99 %.1f), memory of the initiator %.1f MiB (%.1f without any), of the targets %.1f MiB, idle CPU %.2f %% and %.2f %%\n",
		s.Volumes, s.AttachP50, s.AttachP99, s.Initiator, s.InitiatorEmpty, s.Target, 100*s.IdleInitiator, 100*s.IdleTarget)
	return m, nil
}

// extraShelf starts one more target of ours, with LUNs in its first slots.
func (r *rig) extraShelf(number, slots int, size uint64) (*process, error) {
	p, err := r.start(r.server, r.binary, "target", "--shelf", strconv.Itoa(number), "--interface", "s0",
		"--dir", filepath.Join(r.dir, fmt.Sprintf("shelf%d", number)), "--run-dir", r.dir)
	if err != nil {
		return nil, err
	}
	shelf, err := r.shelf(number)
	if err != nil {
		return nil, err
	}
	defer shelf.close()
	if err := eventually(func() error { _, err := shelf.allocations(r.ctx); return err }); err != nil {
		return nil, fmt.Errorf("shelf %d: %w", number, err)
	}
	return p, shelf.makeLUNs(r.ctx, number, slots, size, r.mac("c0"), r.mac("c1"))
}
