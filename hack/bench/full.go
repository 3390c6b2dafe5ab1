package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// Shelves of the sweeps; those of frame sizes count on from the last.
const (
	volumesShelf = 11
	framesShelf  = 12
)

// hotBytes is a LUN so small that writes often come to where one was sent again less than a second before.
const hotBytes = 4 << 20

// full measures how cost grows with depth, volumes, frame size and loss, and writes docs, with what was measured in a VM.
func full(ctx context.Context, binary, dir, vm string) error {
	inVM, err := bench.Read(vm)
	if err != nil {
		return err
	}
	r, err := newRig(ctx, binary)
	if err != nil {
		return errors.Join(err, r.close())
	}
	points, err := r.sweepAll()
	if err := errors.Join(err, r.close()); err != nil {
		return err
	}
	s := &bench.Sweeps{Date: time.Now().UTC().Truncate(time.Second), Machine: machine(), Points: bench.MedianPoints(points), VM: bench.Median(inVM)}
	return s.Write(dir)
}

// sweep is one of them.
type sweep struct {
	name string
	jobs []job
	xs   []float64
	// at measures a job at x.
	at func(j job, x float64) (bench.Measurement, error)
}

func (r *rig) sweepAll() (points []bench.Point, err error) {
	if err := r.serve(); err != nil {
		return nil, err
	}
	if err := r.fill(); err != nil {
		return nil, err
	}
	hot, err := r.serveForeign("e3.2", hotBytes)
	if err != nil {
		return nil, err
	}
	small := []job{{"4k randread", "randread", "4Ki", 4 << 10, 32, false}, {"4k randwrite", "randwrite", "4Ki", 4 << 10, 32, false}}
	large := []job{{"128k read", "read", "128Ki", 128 << 10, 32, false}, {"128k write", "write", "128Ki", 128 << 10, 32, false}}
	depths := []float64{1, 2, 4, 8, 16, 32, 64, 128}
	atDepth := func(j job, x float64) (bench.Measurement, error) {
		j.depth = int(x)
		return r.drive(&j, r.target, "e7.1", "c0")
	}
	for _, s := range []sweep{
		{bench.SweepDepth, append(small[:2:2], large...), depths, atDepth},
		{bench.SweepMixed, []job{{"4k randrw", "randrw", "4Ki", 4 << 10, 32, false}}, depths, atDepth},
		{bench.SweepVolumes, small, []float64{1, 4, 16}, r.atVolumes()},
		{bench.SweepLoss, append(small[:2:2], large...), []float64{0, 0.1, 0.3, 1, 3}, r.atLoss(r.target, "e7.1")},
		{bench.SweepForeign, []job{{fmt.Sprintf("4k randwrite, %d MiB", lunBytes>>20), "randwrite", "4Ki", 4 << 10, 32, false}},
			[]float64{0, 0.1, 0.3, 1, 3}, r.atLoss(r.vblade, "e3.1")},
		{bench.SweepForeign, []job{{fmt.Sprintf("4k randwrite, %d MiB", hotBytes>>20), "randwrite", "4Ki", 4 << 10, 32, false}},
			[]float64{0, 0.1, 0.3, 1, 3}, r.atLoss(hot, "e3.2")},
		{bench.SweepFrames, large, []float64{1500, 4200, 9000}, r.atFrames()}, // the last, since it leaves the MTU changed
	} {
		for run := range repetitions {
			for _, j := range s.jobs {
				for _, x := range s.xs {
					m, err := s.at(j, x)
					if err != nil {
						return nil, fmt.Errorf("%s, %s %g: %w", j.name, s.name, x, err)
					}
					m.Where, m.Stack, m.Job = bench.WhereNative, bench.Bare, j.name
					fmt.Printf("%s full %d/%d %-12s %-10s %6g %9.0f IOPS %8.1f MB/s %7.0f µs\n", time.Now().Format(time.TimeOnly), run+1, repetitions, j.name, s.name, x, m.IOPS, m.MBps, m.Mean)
					points = append(points, bench.Point{Sweep: s.name, X: x, Measurement: m})
				}
			}
		}
	}
	return points, nil
}

// atVolumes loads some of sixteen volumes at once.
func (r *rig) atVolumes() func(job, float64) (bench.Measurement, error) {
	var server *process
	return func(j job, x float64) (m bench.Measurement, err error) {
		if server == nil {
			if server, err = r.extraShelf(volumesShelf, 16, 8<<20); err != nil {
				return m, err
			}
		}
		j.depth = 8
		return r.drive(&j, server, fmt.Sprintf("e%d.0-%d", volumesShelf, int(x)-1), "c0")
	}
}

// atLoss loses x of 100 frames in each direction.
func (r *rig) atLoss(server *process, addr string) func(job, float64) (bench.Measurement, error) {
	return func(j job, x float64) (m bench.Measurement, err error) {
		if x == 0 {
			return r.drive(&j, server, addr, "c0")
		}
		if err := r.lose("0", x/100); err != nil {
			return m, err
		}
		m, err = r.drive(&j, server, addr, "c0")
		return m, errors.Join(err, r.lose("0", 0))
	}
}

// atFrames has frames of at most x bytes, with a target of its own for each: a target learns its interface's MTU when it starts.
func (r *rig) atFrames() func(job, float64) (bench.Measurement, error) {
	servers, numbers := map[float64]*process{}, map[float64]int{}
	return func(j job, x float64) (m bench.Measurement, err error) {
		for ns, ifname := range map[string]string{r.client: "c0", r.server: "s0"} {
			if _, err := r.run("", "ip", "-n", ns, "link", "set", ifname, "mtu", strconv.Itoa(int(x))); err != nil {
				return m, err
			}
		}
		number := framesShelf + len(servers)
		if servers[x] == nil {
			if servers[x], err = r.extraShelf(number, 1, lunBytes); err != nil {
				return m, err
			}
			numbers[x] = number
		}
		return r.drive(&j, servers[x], aoe.Addr{Shelf: uint16(numbers[x])}.String(), "c0")
	}
}
