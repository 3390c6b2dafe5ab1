package main

import (
	"strings"
	"testing"
)

func TestCounts(t *testing.T) {
	for _, c := range []struct {
		name, events   string
		passed, failed int
	}{
		{"nothing", "", 0, 0},
		{"one passes", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, 1, 0},
		{"subtests count, their parent does not", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA/y"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, 1, 1},
		{"a parent fails by itself", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, 1, 1},
		{"a skipped test is a failed one", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, 0, 1},
		{"a build fails", `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: oh\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p","FailedBuild":"p"}`, 0, 1},
		{"a test is cut off", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic\n"}`, 0, 1},
		{"no test files", `{"Action":"start","Package":"p"}
{"Action":"skip","Package":"p"}`, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out, false)
			if err := s.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			if passed, failed := s.finish(); passed != c.passed || failed != c.failed {
				t.Errorf("%d passed, %d failed; want %d, %d; printed:\n%s", passed, failed, c.passed, c.failed, out.String())
			}
		})
	}
}

func TestFailuresAreShown(t *testing.T) {
	var out strings.Builder
	s := newSummary(&out, false)
	err := s.read(strings.NewReader(`linker: warning
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"loud\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p"}
`))
	if err != nil {
		t.Fatal(err)
	}
	s.finish()
	printed := out.String()
	for _, want := range []string{"linker: warning\n", "loud\n", "FAIL  p TestB (fail)\n", "1 tests passed, 1 failed\n"} {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is missing in:\n%s", want, printed)
		}
	}
	if strings.Contains(printed, "quiet") {
		t.Errorf("the output of a passed test was printed:\n%s", printed)
	}
}
