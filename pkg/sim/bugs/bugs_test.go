// Package bugs plants bugs in the product and has the simulation look for them: one that finds nothing proves nothing. A bug is a change
// of the source that exists in a build overlay only; the product has no switch for it.
package bugs

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	find  = flag.Bool("find", false, "build each bug and look for it; else only see whether it can still be planted")
	only  = flag.String("only", "", "the part of a bug's name")
	limit = flag.Uint64("limit", 10_000, "the most seeds to look at")
)

const root = "../../.."

// edit replaces text of a file of pkg/ that must be there once.
type edit struct{ file, old, new string }

// plant applies the edits and returns an overlay for the go command.
func plant(t *testing.T, edits []edit) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for i, e := range edits {
		path, err := filepath.Abs(filepath.Join(root, "pkg", e.file))
		if err != nil {
			t.Fatal(err)
		}
		from := path
		if replace[path] != "" {
			from = replace[path]
		}
		source, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), e.old); n != 1 {
			t.Fatalf("pkg/%s has %d times what the bug replaces, want 1: change the bug with the code:\n%s", e.file, n, e.old)
		}
		planted := filepath.Join(dir, strconv.Itoa(i)+".go")
		if err := os.WriteFile(planted, []byte(strings.Replace(string(source), e.old, e.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = planted
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

var (
	failure = regexp.MustCompile(`(?m)seed \d+: (?:at \S+: )?(.*)$`)
	looked  = regexp.MustCompile(`(?m)(\d+) seeds in`)
)

// TestBugs: the simulation finds each.
func TestBugs(t *testing.T) {
	var found []string
	for _, b := range bugs {
		if !strings.Contains(b.name, *only) {
			continue
		}
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
			overlay := plant(t, b.edits)
			if !*find {
				return
			}
			line := search(t, overlay, b.name)
			t.Log(line)
			found = append(found, line)
		})
	}
	if *find {
		t.Logf("%d of %d found:\n%s", len(found), len(bugs), strings.Join(found, "\n"))
	}
}

// search builds the simulation with a bug, runs it, and says what it found.
func search(t *testing.T, overlay, name string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "sim.test")
	build := exec.Command("go", "test", "-c", "-tags", "invariants", "-overlay", overlay, "-o", binary, "./pkg/sim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	began := time.Now()
	out, err := exec.Command(binary, "-test.run", "TestSeeds$", "-test.v", "-seeds", strconv.FormatUint(*limit, 10)).CombinedOutput()
	n := looked.FindSubmatch(out)
	if err == nil || n == nil {
		t.Fatalf("not found in %d seeds: %v\n%s", *limit, err, out[max(0, len(out)-2000):])
	}
	what := "?"
	if f := failure.FindSubmatch(out); f != nil {
		what = string(f[1])
	}
	return name + ": " + string(n[1]) + " seeds, " + time.Since(began).Round(time.Millisecond).String() + ": " + what
}
