package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Sweeps of `make bench-full`: what is changed from one measurement to the next.
const (
	SweepDepth   = "depth"
	SweepVolumes = "volumes"
	SweepFrames  = "frame size"
	SweepMixed   = "mixed load" // depth, too
	SweepLoss    = "loss, %"
	SweepForeign = "loss to vblade, %" // held back: see docs/design.md on late copies
)

// Point is a measurement of a sweep.
type Point struct {
	Sweep string  `json:"sweep"`
	X     float64 `json:"x"`
	Measurement
}

// Sweeps is how cost grows.
type Sweeps struct {
	Date    time.Time         `json:"date"`
	Machine map[string]string `json:"machine"`
	Points  []Point           `json:"points"` // medians
	VM      []Measurement     `json:"vm"`     // medians of stacks that only `make bench-full` measures, and of what they are compared with
}

// MedianPoints is the median of each point's figures over its repetitions, in the order of their first appearance.
func MedianPoints(all []Point) []Point {
	var medians []Point
	for _, p := range all {
		same := func(k Point) bool { return k.Sweep == p.Sweep && k.X == p.X && k.Job == p.Job }
		if slices.ContainsFunc(medians, same) {
			continue
		}
		var runs []Measurement
		for _, k := range all {
			if same(k) {
				runs = append(runs, k.Measurement)
			}
		}
		medians = append(medians, Point{Sweep: p.Sweep, X: p.X, Measurement: Median(runs)[0]})
	}
	return medians
}

// Write writes full.json, full.md and plots to a directory.
func (s *Sweeps) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "full.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	var page bytes.Buffer
	page.WriteString("# How cost grows\n\nMade by `make bench-full`; do not edit. Both ends on one machine; unless said otherwise over veth, without a block layer: the initiator's core and loop, and our target.\n")
	for _, c := range s.curves() {
		name := c.file + ".svg"
		if err := os.WriteFile(filepath.Join(dir, name), c.svg(), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&page, "\n![%s](%s)\n", c.title, name)
	}
	page.WriteString(s.table())
	if inVM := figures(s.VM, WhereVM); inVM != "" {
		page.WriteString(inVM + "\nThe VM is emulated: only ratios within it mean anything.\n")
	}
	fmt.Fprintf(&page, "\n## Machine\n\n| | |\n|---|---|\n| date | %s |\n", s.Date.Format(time.DateTime))
	for _, key := range sortedKeys(s.Machine) {
		fmt.Fprintf(&page, "| %s | %s |\n", key, s.Machine[key])
	}
	return os.WriteFile(filepath.Join(dir, "full.md"), page.Bytes(), 0o644)
}

func (s *Sweeps) table() string {
	var b strings.Builder
	last := ""
	for _, p := range s.Points {
		if p.Sweep != last {
			last = p.Sweep
			fmt.Fprintf(&b, "\n| job | %s | IOPS | MB/s | mean µs | p50 µs | p99 µs | CPU s/GB | sent again |\n|---|---|---|---|---|---|---|---|---|\n", p.Sweep)
		}
		fmt.Fprintf(&b, "| %s | %g | %.0f | %.1f | %.0f | %.0f | %.0f | %.2f | %d |\n", p.Job, p.X, p.IOPS, p.MBps, p.Mean, p.P50, p.P99, p.CPU, p.Retransmits)
	}
	return b.String()
}

// curves are the plots of a sweep; those without two points are left out.
func (s *Sweeps) curves() []curve {
	var kept []curve
	for _, c := range []struct {
		curve
		figure func(*Measurement) float64
	}{
		{curve{file: "full-depth-iops", sweep: SweepDepth, title: "depth", unit: "IOPS"}, iops},
		{curve{file: "full-depth-latency", sweep: SweepDepth, title: "depth", unit: "mean µs"}, mean},
		{curve{file: "full-volumes-iops", sweep: SweepVolumes, title: "volumes, depth 8 each", unit: "IOPS"}, iops},
		{curve{file: "full-volumes-cpu", sweep: SweepVolumes, title: "volumes, depth 8 each", unit: "CPU s/GB"}, cpu},
		{curve{file: "full-frames", sweep: SweepFrames, title: "frame size (MTU), 128k, depth 32", unit: "MB/s"}, mbps},
		{curve{file: "full-frames-cpu", sweep: SweepFrames, title: "frame size (MTU), 128k, depth 32", unit: "CPU s/GB"}, cpu},
		{curve{file: "full-mixed", sweep: SweepMixed, title: "depth, 7 reads to 3 writes of 4k", unit: "IOPS"}, iops},
		{curve{file: "full-loss", sweep: SweepLoss, title: "frames lost in each direction, %", unit: "MB/s"}, mbps},
		{curve{file: "full-loss-vblade", sweep: SweepForeign, title: "frames lost in each direction, %, vblade", unit: "IOPS"}, iops},
	} {
		points := 0
		for i := range s.Points {
			if p := &s.Points[i]; p.Sweep == c.sweep {
				c.add(p.Job, p.X, c.figure(&p.Measurement))
				points++
			}
		}
		if points > 1 {
			kept = append(kept, c.curve)
		}
	}
	return kept
}

func cpu(m *Measurement) float64 { return m.CPU }
