package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func layerNames(t *testing.T, root *tree) map[string]*tar.Header {
	t.Helper()
	stream, err := root.open()
	if err != nil {
		t.Fatal(err)
	}
	headers := make(map[string]*tar.Header)
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name] = h
	}
}

func TestToolBringsItsLibraries(t *testing.T) {
	root := newTree()
	if err := root.addTool("/sbin/mke2fs"); err != nil {
		t.Fatal(err)
	}
	headers := layerNames(t, root)
	for _, want := range []string{"usr/sbin/mke2fs", "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libext2fs.so.2", "usr/lib64/ld-linux-x86-64.so.2"} {
		if headers[want] == nil {
			t.Errorf("layer lacks %s", want)
		}
	}
	if link := headers["lib64"]; link == nil || link.Linkname != "usr/lib64" {
		t.Errorf("lib64 is %+v, want a link to usr/lib64", link)
	}
}

func TestEntries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		entry, name string
		ok          bool
	}{
		{"/bin/f=" + file, "usr/bin/f", true},
		{"/opt/a/b=" + file, "opt/a/b", true},
		{"bin/g=@f", "usr/bin/g", true},
		{"/bin/f", "", false},
		{"=x", "", false},
		{"/bin/f=/no/such/file", "", false},
		{"/bin/f=/etc", "", false},
	} {
		root := newTree()
		err := root.addEntry(c.entry)
		if (err == nil) != c.ok {
			t.Errorf("addEntry(%q) = %v", c.entry, err)
		}
		if c.ok && layerNames(t, root)[c.name] == nil {
			t.Errorf("addEntry(%q): layer lacks %s", c.entry, c.name)
		}
	}
}

func TestSameInputSameArchive(t *testing.T) {
	dir := t.TempDir()
	var archives [][]byte
	for _, name := range []string{"a.tar", "b.tar"} {
		out := filepath.Join(dir, name)
		err := run(options{out: out, tag: "example.org/x:1", entrypoint: "/sh", tools: list{"/bin/sh"}})
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, content)
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(out) })
		if err != nil {
			t.Fatal(err)
		}
		if tags := manifest[0].RepoTags; len(tags) != 1 || tags[0] != "example.org/x:1" {
			t.Errorf("tags %v, want example.org/x:1", tags)
		}
	}
	if !slices.Equal(archives[0], archives[1]) {
		t.Error("the same input gave different archives")
	}
}

func TestParseLinkerCache(t *testing.T) {
	paths := parseLinkerCache([]byte("2 libs found in cache\n" +
		"\tliba.so.1 (libc6) => /lib32/liba.so.1\n" +
		"\tliba.so.1 (libc6,x86-64) => /first/liba.so.1\n" +
		"\tliba.so.1 (libc6,x86-64) => /second/liba.so.1\n"))
	if len(paths) != 1 || paths["liba.so.1"] != "/first/liba.so.1" {
		t.Errorf("paths = %v", paths)
	}
}
