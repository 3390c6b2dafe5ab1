package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is what cmd/test2json documents as TestEvent, as far as it is used here.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

type summary struct {
	out      io.Writer
	verbose  bool
	packages map[string]*packageResult
	builds   map[string][]string // output of builds by import path
	order    []string
}

type packageResult struct {
	results map[string]string // test name to its last action: run, pass, fail, skip
	output  map[string][]string
	action  string // pass, fail, skip; empty while the package runs
	elapsed float64
}

func newSummary(out io.Writer, verbose bool) *summary {
	return &summary{out: out, verbose: verbose, packages: make(map[string]*packageResult), builds: make(map[string][]string)}
}

// read takes events until the end. Lines that are none, such as a linker's warnings, are passed on.
func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if line[0] != '{' || json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(s.out, "%s", line)
			} else {
				s.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (s *summary) take(e event) {
	switch e.Action {
	case "build-output":
		s.builds[e.ImportPath] = append(s.builds[e.ImportPath], e.Output)
		return
	case "build-fail":
		fmt.Fprintf(s.out, "%s", strings.Join(s.builds[e.ImportPath], ""))
		return
	}
	p := s.packages[e.Package]
	if p == nil {
		p = &packageResult{results: make(map[string]string), output: make(map[string][]string)}
		s.packages[e.Package] = p
		s.order = append(s.order, e.Package)
	}
	switch e.Action {
	case "output":
		if s.verbose || strings.HasPrefix(e.Output, "figure: ") {
			fmt.Fprint(s.out, e.Output)
		} else {
			p.output[e.Test] = append(p.output[e.Test], e.Output)
		}
	case "run":
		p.results[e.Test] = "run"
	case "pass", "fail", "skip":
		s.end(p, e)
	}
}

func (s *summary) end(p *packageResult, e event) {
	if e.Test == "" {
		p.action, p.elapsed = e.Action, e.Elapsed
		if e.Action == "pass" {
			fmt.Fprintf(s.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
		}
		return
	}
	p.results[e.Test] = e.Action
	if e.Action != "pass" && !s.verbose {
		fmt.Fprintf(s.out, "%s", strings.Join(p.output[e.Test], ""))
	}
	delete(p.output, e.Test)
}

// finish prints what is left and returns how many tests passed and how many did not.
func (s *summary) finish() (passed, failed int) {
	for _, name := range s.order {
		p := s.packages[name]
		ok, bad := p.count()
		passed += ok
		failed += len(bad)
		if p.action == "pass" && len(bad) == 0 || p.action == "skip" {
			continue
		}
		for _, test := range bad {
			fmt.Fprintf(s.out, "FAIL  %s %s (%s)\n", name, test, p.results[test])
			if p.results[test] == "run" {
				fmt.Fprintf(s.out, "%s", strings.Join(p.output[test], ""))
			}
		}
		if len(bad) == 0 {
			failed++ // it did not build, or died outside a test
		}
		fmt.Fprintf(s.out, "%sFAIL  %s\n", strings.Join(p.output[""], ""), name)
	}
	fmt.Fprintf(s.out, "%d tests passed, %d failed\n", passed, failed)
	return passed, failed
}

// count returns the number of innermost tests that passed, and the names of those that did not.
func (p *packageResult) count() (passed int, failed []string) {
	inner := make(map[string]bool, len(p.results))
	for test := range p.results {
		inner[test] = true
	}
	for test := range p.results {
		for parent := test; ; {
			i := strings.LastIndexByte(parent, '/')
			if i < 0 {
				break
			}
			parent = parent[:i]
			inner[parent] = false
		}
	}
	subtestFailed := make(map[string]bool)
	for test, result := range p.results {
		if inner[test] && result == "pass" {
			passed++
		} else if inner[test] {
			failed = append(failed, test)
			for i, c := range test {
				if c == '/' {
					subtestFailed[test[:i]] = true
				}
			}
		}
	}
	// A test can fail by itself although all its subtests passed.
	for test, result := range p.results {
		if !inner[test] && result != "pass" && !subtestFailed[test] {
			failed = append(failed, test)
		}
	}
	slices.Sort(failed)
	return passed, failed
}
