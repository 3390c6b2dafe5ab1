// Command image writes container images as archives that `ctr images import` takes, without an engine or a registry.
//
//	image -o OUT.tar -tag NAME:TAG [flags] DEST=FILE … DEST=@TARGET …
//
// DEST=FILE copies a file of this machine, DEST=@TARGET makes a symbolic link. Every -tool is copied to its own path
// together with the shared libraries and interpreter it needs. The same inputs give the same bytes.
package main

import (
	"compress/gzip"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

type options struct {
	out        string
	tag        string
	entrypoint string
	command    string
	tools      list
	entries    []string
}

func main() {
	var o options
	flag.StringVar(&o.out, "o", "", "archive to write")
	flag.StringVar(&o.tag, "tag", "", "name:tag of the image")
	flag.StringVar(&o.entrypoint, "entrypoint", "", "path in the image of the program to run")
	flag.StringVar(&o.command, "cmd", "", "default argument, or the program if there is no entry point")
	flag.Var(&o.tools, "tool", "program of this machine to copy with its libraries; may be repeated")
	flag.Parse()
	o.entries = flag.Args()
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.out == "" || o.tag == "" {
		return fmt.Errorf("need -o and -tag")
	}
	root := newTree()
	for _, tool := range o.tools {
		if err := root.addTool(tool); err != nil {
			return err
		}
	}
	for _, entry := range o.entries {
		if err := root.addEntry(entry); err != nil {
			return err
		}
	}
	img, err := build(root, o)
	if err != nil {
		return err
	}
	return write(img, o)
}

// build makes an image of one layer.
func build(root *tree, o options) (v1.Image, error) {
	// Stored, not deflated: archives stay on this machine, and an emulated guest unpacks them much faster.
	layer, err := tarball.LayerFromOpener(root.open, tarball.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config.Env = []string{searchPath}
	if o.entrypoint != "" {
		file.Config.Entrypoint = []string{o.entrypoint}
	}
	if o.command != "" {
		file.Config.Cmd = []string{o.command}
	}
	return mutate.ConfigFile(img, file)
}

// write puts the archive in place only when it is complete.
func write(img v1.Image, o options) error {
	tag, err := name.NewTag(o.tag)
	if err != nil {
		return fmt.Errorf("parse tag %s: %w", o.tag, err)
	}
	tmp := o.out + ".tmp"
	if err := tarball.WriteToFile(tmp, tag, img); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	return os.Rename(tmp, o.out)
}
