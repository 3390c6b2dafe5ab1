package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	for i := 1; i <= 1000; i++ {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	for _, tc := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 500 * time.Microsecond}, {0.99, 990 * time.Microsecond}, {1, time.Millisecond}} {
		got := h.Quantile(tc.q)
		if off := float64(got-tc.want) / float64(tc.want); off < -0.04 || off > 0.04 {
			t.Errorf("quantile %v is %v, want %v within 4 %%", tc.q, got, tc.want)
		}
	}
	if h.Count() != 1000 || h.Mean() != 500500*time.Nanosecond {
		t.Errorf("count %d, mean %v; want 1000, 500.5µs", h.Count(), h.Mean())
	}
	if n := testing.AllocsPerRun(100, func() { h.Add(time.Hour) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}

func TestHistogramBucketsGrow(t *testing.T) {
	last := -1
	for v := uint64(0); v < 1<<20; v += 1 + v/64 {
		b := bucketOf(v)
		if b < last {
			t.Fatalf("bucket of %d is %d, that of less was %d", v, b, last)
		}
		last = b
		if m := float64(middle(b)); v > 0 && (m < 0.95*float64(v)-1 || m > 1.05*float64(v)+1) {
			t.Fatalf("%d is booked as %v", v, m)
		}
	}
}

// complete is a run in which everything is measured and every row is met; tweak may spoil it.
func complete(tweak func(*Measurement)) []Measurement {
	var runs []Measurement
	for _, r := range rules {
		for _, stack := range []string{r.mine, r.peer} {
			if stack == "" || find(runs, r.where, stack, r.job) != nil {
				continue
			}
			for range 3 {
				m := Measurement{Where: r.where, Stack: stack, Job: r.job, IOPS: 100, MBps: 100, Mean: 100}
				m.Timeout, m.Longest, m.PoolFrames, m.PoolCeiling = 20, 30, 64, 256
				if r.job == Idle {
					m.Scale = &Scale{Volumes: 256, Initiator: 100, AttachP99: 100}
				}
				if stack == UBLK || stack == KernelOurs || stack == TwoPaths {
					m.IOPS, m.MBps = 200, 200
				}
				tweak(&m)
				runs = append(runs, m)
			}
		}
	}
	return runs
}

func TestReportJudges(t *testing.T) {
	if missed := NewReport(complete(func(*Measurement) {}), nil, WhereVM, WhereNative).Missed(); len(missed) > 0 {
		t.Fatalf("missed, though all is well: %q", missed)
	}
	slow := func(m *Measurement) {
		if m.Stack == UBLK && m.Job == Read4k1 {
			m.Mean = 121
		}
	}
	missed := NewReport(complete(slow), nil, WhereVM, WhereNative).Missed()
	if len(missed) != 1 || !strings.Contains(missed[0], "latency at depth 1: 1.21, want at most 1.2") {
		t.Errorf("a latency that is too long: %q", missed)
	}
	allocates := func(m *Measurement) {
		if m.Stack == Million && m.Job == Read4k {
			m.TargetAllocations = 0.0011
		}
	}
	missed = NewReport(complete(allocates), nil, WhereVM, WhereNative).Missed()
	if len(missed) != 1 || !strings.Contains(missed[0], "in the target, a million 4k reads: 0.0011, want at most 0.001") {
		t.Errorf("a target that allocates: %q", missed)
	}
	var without []Measurement
	for _, m := range complete(func(*Measurement) {}) {
		if m.Stack != TwoPaths && m.Stack != Many && m.Stack != Pulled {
			without = append(without, m)
		}
	}
	missed = NewReport(without, nil, WhereVM, WhereNative).Missed()
	if len(missed) != 6 || !strings.Contains(missed[0], "two paths") || !strings.Contains(missed[1], "pulled") {
		t.Errorf("rows that were not measured: %q", missed)
	}
	if missed := NewReport(without, nil, WhereVM).Missed(); len(missed) != 0 {
		t.Errorf("rows of a place that was left out: %q", missed)
	}
}

func TestMedianIsOfRuns(t *testing.T) {
	var runs []Measurement
	for _, v := range []float64{10, 1000, 30} {
		runs = append(runs, Measurement{Where: WhereVM, Stack: UBLK, Job: Read4k, IOPS: v})
	}
	if m := Median(runs); len(m) != 1 || m[0].IOPS != 30 {
		t.Errorf("median of 10, 1000, 30: %+v", m)
	}
}

func TestReportIsWritten(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "runs")
	for _, m := range complete(func(*Measurement) {}) {
		if err := Append(file, m); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := NewReport(runs, map[string]string{"fio": "fio-3"}, WhereVM, WhereNative).Write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if k := got.Ratios["two paths : one path, both shaped, 128k reads"]; k.Value != 2 || !k.OK || k.AtLeast != 1.8 {
		t.Errorf("ratio of two paths: %+v", k)
	}
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil || !strings.Contains(string(page), "vm-iops.svg") || !strings.Contains(string(page), "| fio | fio-3 |") {
		t.Errorf("README.md: %v\n%s", err, page)
	}
	if svg, err := os.ReadFile(filepath.Join(dir, "vm-iops.svg")); err != nil || !strings.Contains(string(svg), UBLK) {
		t.Errorf("vm-iops.svg: %v", err)
	}
}
