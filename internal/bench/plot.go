package bench

import (
	"bytes"
	"fmt"
	"html"
	"maps"
	"slices"
)

// plot is a bar chart: a group of bars for each job, a bar for each stack.
type plot struct {
	file, title, unit string
	bars              []bar
}

type bar struct {
	job, stack string
	value      float64
}

// plotsOf makes the charts of a run; those without a bar are left out.
func plotsOf(medians []Measurement) []plot {
	all := []struct {
		plot
		where  string
		jobs   []string
		figure func(*Measurement) float64
	}{
		{plot{file: "vm-iops", title: "4k random, depth 32, in the VM", unit: "IOPS"}, WhereVM, []string{Read4k, Write4k}, iops},
		{plot{file: "vm-throughput", title: "128k, depth 32, in the VM", unit: "MB/s"}, WhereVM, []string{Read128k, Write128k}, mbps},
		{plot{file: "vm-latency", title: "4k random read, depth 1, in the VM: less is better", unit: "µs"}, WhereVM, []string{Read4k1}, mean},
		{plot{file: "native-iops", title: "depth 32, over veth, no block layer", unit: "IOPS"}, WhereNative, []string{Read4k, Write4k, Read8k, Write8k}, iops},
	}
	var plots []plot
	for _, p := range all {
		for _, job := range p.jobs {
			for i := range medians {
				if m := &medians[i]; m.Where == p.where && m.Job == job && p.figure(m) > 0 {
					p.bars = append(p.bars, bar{job, m.Stack, p.figure(m)})
				}
			}
		}
		if len(p.bars) > 0 {
			plots = append(plots, p.plot)
		}
	}
	return plots
}

// svg draws the chart: horizontal bars with their values behind them, as wide as a page of Markdown.
func (p *plot) svg() []byte {
	const width, labels, values, row, gap = 760, 210, 80, 20, 26
	var b bytes.Buffer
	most, height, job := 0.0, 34, ""
	for _, k := range p.bars {
		most = max(most, k.value)
		height += row
		if k.job != job {
			job = k.job
			height += gap
		}
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height+8)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="8" y="20" font-size="15">%s (%s)</text>`+"\n", html.EscapeString(p.title), p.unit)
	y := 30
	job = ""
	for _, k := range p.bars {
		if k.job != job {
			job = k.job
			y += gap
			fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y-6, html.EscapeString(job))
		}
		length := k.value / most * (width - labels - values)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="14" fill="%s"/><text x="%.1f" y="%d">%.0f</text>`+"\n",
			labels-8, y+12, html.EscapeString(k.stack), labels, y+1, length, colour(k.stack), labels+length+6, y+12, k.value)
		y += row
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// colour tells ours, the wire and the others apart.
func colour(stack string) string {
	switch stack {
	case UBLK, NBD, Bare, KernelOurs:
		return "#2a7f62"
	case Wire:
		return "#8a8a8a"
	}
	return "#b0722f"
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
