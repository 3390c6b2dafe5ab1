package archtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDockerfile compares what the Dockerfile copies, and .dockerignore lets through, with what the binary is made of: there is no container
// engine here to build it.
func TestDockerfile(t *testing.T) {
	copied := directories(t, "Dockerfile", func(line string) string {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "COPY" && words[1] == words[2] {
			return words[1]
		}
		return ""
	})
	allowed := directories(t, ".dockerignore", func(line string) string { return strings.TrimPrefix(line, "!") })
	needed := map[string]bool{}
	for _, p := range listPackages(t) {
		for _, path := range append(p.Imports, p.ImportPath) {
			if inside, ours := strings.CutPrefix(path, module); ours {
				dir, _, _ := strings.Cut(inside, "/")
				needed[dir] = true
			}
		}
	}
	for dir := range needed {
		if !slices.Contains(copied, dir) {
			t.Errorf("the Dockerfile does not copy %s", dir)
		}
		if !slices.Contains(allowed, dir) {
			t.Errorf(".dockerignore keeps %s out", dir)
		}
	}
	if len(needed) < 2 {
		t.Errorf("directories of our packages: %v", needed)
	}
}

// directories returns what of gives for the lines of a file at the root.
func directories(t *testing.T, name string, of func(line string) string) (found []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if dir := of(strings.TrimSpace(line)); dir != "" {
			found = append(found, dir)
		}
	}
	return found
}
