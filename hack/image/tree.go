package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is the content of a layer: paths without a leading slash. Debian's merged /usr is kept, so that a tool finds its
// libraries and helpers under either name.
type tree struct {
	nodes map[string]node
}

type node struct {
	dir    bool
	link   string // target, if a symbolic link
	source string // file of this machine, if a regular file
	mode   int64
}

func newTree() *tree {
	t := &tree{nodes: make(map[string]node)}
	for _, dir := range []string{"dev", "etc", "mnt", "proc", "root", "run", "sys", "var", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"} {
		t.addDir(dir)
	}
	t.nodes["tmp"] = node{dir: true, mode: 0o1777}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		t.nodes[dir] = node{link: "usr/" + dir, mode: 0o777}
	}
	return t
}

// addEntry takes DEST=FILE or DEST=@TARGET.
func (t *tree) addEntry(entry string) error {
	dest, source, ok := strings.Cut(entry, "=")
	if !ok || dest == "" || source == "" {
		return fmt.Errorf("bad entry %q: want DEST=FILE or DEST=@TARGET", entry)
	}
	if target, isLink := strings.CutPrefix(source, "@"); isLink {
		t.add(dest, node{link: target, mode: 0o777})
		return nil
	}
	return t.addFile(dest, source)
}

// addFile copies a regular file, following links, with its permission bits.
func (t *tree) addFile(dest, source string) error {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return fmt.Errorf("add %s: %w", source, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("add %s: %w", source, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("add %s: not a regular file", source)
	}
	t.add(dest, node{source: real, mode: int64(info.Mode().Perm())})
	return nil
}

func (t *tree) add(dest string, n node) {
	dest = mergeUsr(dest)
	t.addDir(path.Dir(dest))
	t.nodes[dest] = n
}

func (t *tree) addDir(dir string) {
	if dir == "." || dir == "/" {
		return
	}
	if _, ok := t.nodes[dir]; ok {
		return
	}
	t.addDir(path.Dir(dir))
	t.nodes[dir] = node{dir: true, mode: 0o755}
}

// mergeUsr maps /bin/x to usr/bin/x, as the links in the image do.
func mergeUsr(p string) string {
	p = strings.TrimPrefix(path.Clean(p), "/")
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(p, dir) {
			return "usr/" + p
		}
	}
	return p
}

// open returns the layer as an uncompressed tar: parents before children, in name order, no times, owned by root.
func (t *tree) open() (io.ReadCloser, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	names := make([]string, 0, len(t.nodes))
	for name := range t.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := t.nodes[name].writeTo(w, name); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("close layer: %w", err)
	}
	return io.NopCloser(&buf), nil
}

func (n node) writeTo(w *tar.Writer, name string) error {
	header := &tar.Header{Name: name, Mode: n.mode, Format: tar.FormatPAX}
	switch {
	case n.dir:
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(header)
	case n.link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, n.link
		return w.WriteHeader(header)
	}
	content, err := os.ReadFile(n.source)
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}
