package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/aoe-csi/aoe-csi/"
	root   = "../.."
)

// rule is a row of the table: what a package may import.
type rule struct {
	all     bool     // everything of ours
	ours    []string // packages of ours, "aoe"
	stdOnly bool     // nothing from elsewhere …
	sys     bool     // … but golang.org/x/sys
}

var (
	row  = regexp.MustCompile("(?m)^\\| `([a-z/-]+)` \\|[^|]*\\|([^|]*)\\|$")
	word = regexp.MustCompile(`[a-z0-9/]+`)
)

// parseTable reads the rules out of the design: rows "| `pkg/name` | duty | may import |". The last cell is prose; the names of
// packages in it count.
func parseTable(design string) map[string]rule {
	cells := map[string]string{}
	for _, match := range row.FindAllStringSubmatch(design, -1) {
		if name := match[1]; strings.HasPrefix(name, "pkg/") || strings.HasPrefix(name, "cmd/") {
			cells[name] = match[2]
		}
	}
	rules := map[string]rule{}
	for name, cell := range cells {
		var r rule
		for _, w := range word.FindAllString(cell, -1) {
			_, known := cells["pkg/"+w]
			switch {
			case w == "all":
				r.all = true
			case w == "std":
				r.stdOnly = true
			case w == "x/sys":
				r.sys = true
			case known:
				r.ours = append(r.ours, w)
			}
		}
		rules[name] = r
	}
	return rules
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	// go test keeps a result until a file that the test itself looked at changes; go list looks on its own.
	for _, dir := range []string{"cmd", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./cmd/...", "./pkg/...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	decoder := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// unit is the row that a package belongs to: "pkg/blockdev" for pkg/blockdev/nbd.
func unit(importPath string) string {
	parts := strings.SplitN(strings.TrimPrefix(importPath, module), "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// violation says why an import breaks the rule, or "".
func violation(r rule, from, imported string) string {
	switch {
	case strings.HasPrefix(imported, module):
		to := unit(imported)
		switch {
		case to == from, r.all:
			return ""
		case !strings.HasPrefix(to, "pkg/"):
			return "is no package for use by others"
		case !slices.Contains(r.ours, strings.TrimPrefix(to, "pkg/")):
			return "is not an arrow of the table in docs/design.md"
		}
	case r.stdOnly && strings.Contains(strings.SplitN(imported, "/", 2)[0], "."):
		if !r.sys || !strings.HasPrefix(imported, "golang.org/x/sys/") {
			return "is not in the standard library"
		}
	}
	return ""
}

func TestArrows(t *testing.T) {
	design, err := os.ReadFile(filepath.Join(root, "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules := parseTable(string(design))
	if len(rules) < 5 {
		t.Fatalf("only %d rows found in the table of docs/design.md", len(rules))
	}
	stale := maps.Clone(rules)
	for _, p := range listPackages(t) {
		from := unit(p.ImportPath)
		delete(stale, from)
		r, ok := rules[from]
		if !ok {
			t.Errorf("%s has no row in the table of docs/design.md", from)
			continue
		}
		for _, imported := range p.Imports {
			if why := violation(r, from, imported); why != "" {
				t.Errorf("%s imports %s, which %s", strings.TrimPrefix(p.ImportPath, module), strings.TrimPrefix(imported, module), why)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(stale)) {
		t.Errorf("docs/design.md has a row for %s, which does not exist", name)
	}
}

// The table itself must not contain a circle: one that the compiler does not see yet is still wrong.
func TestTableHasNoCircle(t *testing.T) {
	design, err := os.ReadFile(filepath.Join(root, "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	if circle := findCircle(parseTable(string(design))); circle != nil {
		t.Errorf("the table has a circle: %s", strings.Join(circle, " → "))
	}
}

func findCircle(rules map[string]rule) []string {
	done := map[string]bool{}
	var visit func(name string, way []string) []string
	visit = func(name string, way []string) []string {
		if i := slices.Index(way, name); i >= 0 {
			return append(way[i:], name)
		}
		if done[name] {
			return nil
		}
		for _, to := range rules[name].ours {
			if circle := visit("pkg/"+to, append(slices.Clone(way), name)); circle != nil {
				return circle
			}
		}
		done[name] = true
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		if circle := visit(name, nil); circle != nil {
			return circle
		}
	}
	return nil
}

// The test has to be able to fail.
func TestRulesBite(t *testing.T) {
	rules := parseTable("| package | duty | may import |\n|---|---|---|\n" +
		"| `cmd/x` | wiring | all |\n| `pkg/a` | duty | b, and interfaces of its own |\n" +
		"| `pkg/b` | duty | std only |\n| `pkg/c` | duty | std, x/sys |\n| `node` | a process | pkg |\n")
	if len(rules) != 4 {
		t.Fatalf("rules: %+v", rules)
	}
	for _, test := range []struct {
		from, imported string
		good           bool
	}{
		{"cmd/x", module + "pkg/a", true},
		{"pkg/a", module + "pkg/b/sub", true},
		{"pkg/a", module + "pkg/a/sub", true},
		{"pkg/a", module + "pkg/c", false},
		{"pkg/a", module + "internal/archtest", false},
		{"pkg/a", "google.golang.org/grpc", true},
		{"pkg/b", "net/http", true},
		{"pkg/b", "golang.org/x/sys/unix", false},
		{"pkg/c", "golang.org/x/sys/unix", true},
		{"pkg/c", "golang.org/x/system", false},
		{"pkg/c", module + "pkg/b", false},
	} {
		if why := violation(rules[test.from], test.from, test.imported); (why == "") != test.good {
			t.Errorf("%s imports %s: %q, want that to be good: %v", test.from, test.imported, why, test.good)
		}
	}
	if circle := findCircle(map[string]rule{"pkg/a": {ours: []string{"b"}}, "pkg/b": {ours: []string{"a"}}}); circle == nil {
		t.Error("a circle was not found")
	}
}
