package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/shelf"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// serveShelf serves an empty shelf 7 in a new run directory.
func serveShelf(t *testing.T) (runDir string) {
	t.Helper()
	number := uint16(7)
	s, err := target.Open(target.Config{Dir: t.TempDir(), Number: &number})
	if err != nil {
		t.Fatal(err)
	}
	runDir = t.TempDir()
	l, err := shelf.ListenUnix(filepath.Join(runDir, "shelf-7-api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- shelf.Serve(ctx, l, shelf.NewServer(s, shelf.Info{}), nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return runDir
}

// lunCommand runs `aoe-csi lun ARG…`.
func lunCommand(args ...string) (string, error) {
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"lun"}, args...))
	err := root.ExecuteContext(context.Background())
	return out.String(), err
}

func TestLunLife(t *testing.T) {
	const gen = "abcdefghijklmn23"
	run := "--run-dir=" + serveShelf(t)
	for _, step := range []struct {
		name string
		args []string
		want string // in the output
		fail string // in the error; empty: succeeds
	}{
		{"empty", []string{"list"}, "ADDRESS", ""},
		{"create", []string{"create", "e7.3", "--size", "64Mi", "--access", "open", "--generation", gen, "--name", "mine"}, "e7.3-" + gen + " 64Mi", ""},
		{"create again", []string{"create", "e7.3", "--size", "64Mi", "--access", "open", "--generation", gen}, "e7.3-" + gen, ""},
		{"create a random one", []string{"create", "e7.4", "--size", "1.5Gi"}, "1536Mi", ""},
		{"slot is taken", []string{"create", "e7.3", "--size", "64Mi"}, "", "slot is taken"},
		{"no size", []string{"create", "e7.5"}, "", "size"},
		{"bad size", []string{"create", "e7.5", "--size", "much"}, "", "want bytes"},
		{"size 0", []string{"create", "e7.5", "--size", "0"}, "", "greater than 0"},
		{"huge size", []string{"create", "e7.5", "--size", "100000Ei"}, "", "more bytes"},
		{"bad access", []string{"create", "e7.5", "--size", "1Mi", "--access", "free"}, "", "managed or open"},
		{"bad address", []string{"create", "7.5", "--size", "1Mi"}, "", "e<shelf>.<slot>"},
		{"no address", []string{"delete"}, "", "arg"},
		{"admit", []string{"admit", "e7.4", "--node", "node-a", "--mac", "52:54:00:00:01:02,52:54:00:00:01:03"}, "", ""},
		{"admit another", []string{"admit", "e7.4", "--node", "node-b", "--mac", "52:54:00:00:01:04"}, "", "a node is admitted: node-a"},
		{"bad MAC", []string{"admit", "e7.4", "--node", "node-a", "--mac", "52"}, "", "MAC"},
		{"list", []string{"list"}, "node-a", ""},
		{"delete while admitted", []string{"delete", "e7.4"}, "", "node-a"},
		{"expel", []string{"expel", "e7.4", "--node", "node-a"}, "", ""},
		{"grow", []string{"grow", "e7.4", "--size", "2Gi"}, "2Gi", ""},
		{"delete", []string{"delete", "e7.4"}, "", ""},
		{"delete what is not there", []string{"delete", "e7.4"}, "", "no such LUN"},
		{"no such shelf", []string{"delete", "e8.4", "--timeout", "1s"}, "", "does not answer"},
		{"bad output", []string{"list", "-o", "yaml"}, "", "table or json"},
	} {
		t.Run(step.name, func(t *testing.T) {
			out, err := lunCommand(append(step.args, run)...)
			switch {
			case step.fail == "" && err != nil:
				t.Fatal(err)
			case step.fail != "" && (err == nil || !strings.Contains(err.Error(), step.fail)):
				t.Fatalf("error %v, want %q", err, step.fail)
			case !strings.Contains(out, step.want):
				t.Fatalf("printed %q, want %q", out, step.want)
			}
		})
	}
	out, err := lunCommand("list", "-o", "json", run)
	var list struct {
		Luns []struct {
			ID   struct{ Generation string }
			Name string
		}
	}
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list.Luns) != 1 || list.Luns[0].ID.Generation != gen || list.Luns[0].Name != "mine" {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLunWithoutAShelf(t *testing.T) {
	if _, err := lunCommand("list", "--run-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), "start `aoe-csi target`") {
		t.Fatal(err)
	}
}
