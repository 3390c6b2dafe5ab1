package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
)

// addTool copies a program to its own path, with what the dynamic linker loads for it. A script is copied as it is; its
// interpreter has to be a tool of its own.
func (t *tree) addTool(name string) error {
	if err := t.addFile(name, name); err != nil {
		return err
	}
	return t.addLibraries(name)
}

// addLibraries walks DT_NEEDED from the given ELF file. Every library is copied to the path under which it was found.
func (t *tree) addLibraries(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) {
			return nil // a script
		}
		return fmt.Errorf("read %s: %w", file, err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if loader := interpreter(f); loader != "" {
		if err := t.addFile(loader, loader); err != nil {
			return err
		}
	}
	for _, soname := range needed {
		if err := t.addLibrary(soname); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func (t *tree) addLibrary(soname string) error {
	paths, err := libraryPaths()
	if err != nil {
		return err
	}
	file, ok := paths[soname]
	if !ok {
		return fmt.Errorf("no library %s on this machine", soname)
	}
	if _, done := t.nodes[mergeUsr(file)]; done {
		return nil
	}
	if err := t.addFile(file, file); err != nil {
		return err
	}
	return t.addLibraries(file)
}

// interpreter returns the path of the dynamic linker, empty for a static file.
func interpreter(f *elf.File) string {
	section := f.Section(".interp")
	if section == nil {
		return ""
	}
	data, err := section.Data()
	if err != nil {
		return ""
	}
	return string(bytes.TrimRight(data, "\x00"))
}

// libraryPaths returns the dynamic linker's cache: soname to file, of this machine's word size.
var libraryPaths = sync.OnceValues(func() (map[string]string, error) {
	out, err := exec.Command("/sbin/ldconfig", "-p").Output()
	if err != nil {
		return nil, fmt.Errorf("read linker cache: %w", err)
	}
	return parseLinkerCache(out), nil
})

// parseLinkerCache reads lines like "libc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6"; the first one wins.
func parseLinkerCache(out []byte) map[string]string {
	paths := make(map[string]string)
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		left, file, ok := strings.Cut(lines.Text(), " => ")
		soname, kind, hasKind := strings.Cut(strings.TrimSpace(left), " ")
		if !ok || !hasKind || !strings.Contains(kind, "x86-64") {
			continue
		}
		if _, seen := paths[soname]; !seen {
			paths[soname] = file
		}
	}
	return paths
}
