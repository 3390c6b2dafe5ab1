package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Report is a whole run.
type Report struct {
	Date     time.Time         `json:"date"`
	Machine  map[string]string `json:"machine"` // and the versions of what was compared
	Ratios   map[string]Ratio  `json:"ratios"`
	Medians  []Measurement     `json:"medians"`
	Runs     []Measurement     `json:"runs"`
	rowNames []string
}

// NewReport judges the measurements of a run.
func NewReport(runs []Measurement, machine map[string]string, places ...string) *Report {
	r := &Report{Date: time.Now().UTC().Truncate(time.Second), Machine: machine, Runs: runs, Medians: Median(runs)}
	r.rowNames, r.Ratios = Ratios(r.Medians, places...)
	return r
}

// Missed names the rows whose bound was missed.
func (r *Report) Missed() []string {
	var missed []string
	for _, name := range r.rowNames {
		if k := r.Ratios[name]; !k.OK {
			missed = append(missed, fmt.Sprintf("%s: %s, want %s", name, k.value(), k.bound()))
		}
	}
	return missed
}

// value has two digits behind the point, or, of what is smaller, two that count.
func (k Ratio) value() string {
	if k.Value > 0 && k.Value < 0.1 {
		return fmt.Sprintf("%.2g", k.Value)
	}
	return fmt.Sprintf("%.2f", k.Value)
}

func (k Ratio) bound() string {
	switch {
	case k.AtMost > 0:
		return fmt.Sprintf("at most %g", k.AtMost)
	case k.AtLeast > 0 && k.Aim > 0:
		return fmt.Sprintf("at least %g (aim %g)", k.AtLeast, k.Aim)
	case k.AtLeast > 0:
		return fmt.Sprintf("at least %g", k.AtLeast)
	}
	return "–"
}

// Write writes results.json, README.md with tables, and plots to a directory.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), b.Bytes(), 0o644); err != nil {
		return err
	}
	var plots []string
	for _, p := range plotsOf(r.Medians) {
		name := p.file + ".svg"
		if err := os.WriteFile(filepath.Join(dir, name), p.svg(), 0o644); err != nil {
			return err
		}
		plots = append(plots, name)
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), []byte(r.markdown(plots)), 0o644)
}

// Table is the ratios as Markdown.
func (r *Report) Table() string {
	var b strings.Builder
	b.WriteString("| row | ratio | wanted | |\n|---|---|---|---|\n")
	for _, name := range r.rowNames {
		k := r.Ratios[name]
		verdict := ""
		switch {
		case k.AtLeast == 0 && k.AtMost == 0:
		case k.OK:
			verdict = "met"
		default:
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, k.value(), k.bound(), verdict)
	}
	return b.String()
}

func (r *Report) markdown(plots []string) string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nMade by `make bench`; do not edit. Ratios of medians of one run, both ends on one machine. The VM is emulated, which makes\n")
	b.WriteString("every instruction 10 to 30 times dearer: only ratios within it mean anything.\n\n")
	b.WriteString(r.Table())
	for _, where := range []string{WhereVM, WhereNative} {
		b.WriteString(figures(r.Medians, where))
	}
	b.WriteString("\n")
	for _, p := range plots {
		fmt.Fprintf(&b, "![%s](%s)\n", strings.TrimSuffix(p, ".svg"), p)
	}
	fmt.Fprintf(&b, "\n## Machine\n\n| | |\n|---|---|\n| date | %s |\n", r.Date.Format(time.DateTime))
	for _, key := range sortedKeys(r.Machine) {
		fmt.Fprintf(&b, "| %s | %s |\n", key, r.Machine[key])
	}
	return b.String()
}

// figures is the table of the medians of one place.
func figures(medians []Measurement, where string) string {
	var b strings.Builder
	for _, m := range medians {
		if m.Where != where {
			continue
		}
		if b.Len() == 0 {
			title := map[string]string{WhereVM: "In the VM: fio over a block device", WhereNative: "On the machine, over veth: no block layer"}[where]
			fmt.Fprintf(&b, "\n## %s\n\n| job | stack | IOPS | MB/s | mean µs | p50 µs | p99 µs | CPU s/GB |\n|---|---|---|---|---|---|---|---|\n", title)
		}
		fmt.Fprintf(&b, "| %s | %s | %.0f | %.1f | %.0f | %s | %s | %s |\n", m.Job, m.Stack, m.IOPS, m.MBps, m.Mean,
			orDash("%.0f", m.P50), orDash("%.0f", m.P99), orDash("%.2f", m.CPU))
	}
	return b.String()
}

func orDash(format string, v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf(format, v)
}
