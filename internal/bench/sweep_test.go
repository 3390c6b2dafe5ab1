package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSweepsAreWritten(t *testing.T) {
	var all []Point
	for _, depth := range []float64{1, 2, 4} {
		for run := range 3 {
			m := Measurement{Job: "4k randread", IOPS: 1000*depth + float64(run), Mean: 10}
			all = append(all, Point{Sweep: SweepDepth, X: depth, Measurement: m})
		}
	}
	points := MedianPoints(all)
	if len(points) != 3 || points[2].X != 4 || points[2].IOPS != 4001 {
		t.Fatalf("medians %+v", points)
	}
	dir := t.TempDir()
	s := &Sweeps{Machine: map[string]string{"CPUs": "2"}, Points: points}
	if err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"full.json": `"x": 4`, "full.md": "| 4k randread | 4 | 4001 |", "full-depth-iops.svg": "<polyline",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v, without %q:\n%s", file, err, want, b)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "full-loss.svg")); err == nil {
		t.Error("a plot of what was not measured")
	}
}
