package bench

import (
	"bytes"
	"fmt"
	"html"
)

// curve is a plot of lines over places that are equally far from each other, whatever their values: depths double.
type curve struct {
	file, sweep, title, unit string
	xs                       []float64
	jobs                     []string
	values                   map[string]map[float64]float64
}

func (c *curve) add(job string, x, value float64) {
	if c.values == nil {
		c.values = map[string]map[float64]float64{}
	}
	if c.values[job] == nil {
		c.values[job] = map[float64]float64{}
		c.jobs = append(c.jobs, job)
	}
	known := false
	for _, k := range c.xs {
		known = known || k == x
	}
	if !known {
		c.xs = append(c.xs, x)
	}
	c.values[job][x] = value
}

// lineColours tell jobs apart; there are more than any sweep has jobs.
var lineColours = []string{"#2a7f62", "#b0722f", "#3b5fa0", "#8a3b6f"}

// svg draws it, as wide as a page of Markdown.
func (c *curve) svg() []byte {
	const width, height, left, right, top, bottom = 760, 320, 80, 170, 40, 40
	var b bytes.Buffer
	most := 0.0
	for _, points := range c.values {
		for _, v := range points {
			most = max(most, v)
		}
	}
	if most == 0 {
		most = 1
	}
	step := float64(width-left-right) / float64(max(1, len(c.xs)-1))
	y := func(v float64) float64 { return height - bottom - v/most*(height-top-bottom) }
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="8" y="20" font-size="15">%s over %s</text>`+"\n", html.EscapeString(c.unit), html.EscapeString(c.title))
	for part := range 5 {
		v := most * float64(part) / 4
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.3g</text>`+"\n", left, width-right, y(v), y(v), left-8, y(v)+4, v)
	}
	for i, x := range c.xs {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", left+float64(i)*step, height-bottom+18, x)
	}
	for k, job := range c.jobs {
		colour := lineColours[k%len(lineColours)]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colour)
		for i, x := range c.xs {
			if v, ok := c.values[job][x]; ok {
				fmt.Fprintf(&b, "%.1f,%.1f ", left+float64(i)*step, y(v))
			}
		}
		fmt.Fprintf(&b, `"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n", width-right+10, top+16*k, colour, html.EscapeString(job))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
