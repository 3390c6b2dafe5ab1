package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shell returns a supervisor of a shell script that appends a line to the returned file each time it is started.
func shell(t *testing.T, script string) (*supervisor, string) {
	t.Helper()
	starts := filepath.Join(t.TempDir(), "starts")
	return &supervisor{
		command: []string{"/bin/sh", "-c", "echo $$ >>" + starts + "; " + script},
		grace:   10 * time.Second, steady: time.Hour, pause: time.Millisecond,
	}, starts
}

func countStarts(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

// afterStarts calls f when the script was started n times.
func afterStarts(t *testing.T, file string, n int, f func()) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); countStarts(t, file) < n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("not started %d times", n)
			break
		}
	}
	f()
}

func TestSupervise(t *testing.T) {
	tests := []struct {
		name   string
		script string
		starts int    // then ctx ends, unless the child ended for good
		want   string // part of the error
		final  bool   // run returns without ctx ending
	}{
		{name: "killed is started again", script: "[ $(wc -l <STARTS) -gt 2 ] && exec sleep 60; kill -KILL $$", starts: 3},
		{name: "failed is started again", script: "[ $(wc -l <STARTS) -gt 1 ] && exec sleep 60; exit 1", starts: 2},
		{name: "ended well is the end", script: "exit 0", starts: 1, final: true},
		{name: "called wrongly is the end", script: "exit 2", starts: 1, final: true, want: "exit status 2"},
		{name: "ends cleanly on SIGTERM", script: "trap 'exit 0' TERM; echo >>STARTS; while :; do sleep 0.01; done", starts: 2},
		{name: "fails on SIGTERM", script: "trap 'exit 7' TERM; echo >>STARTS; while :; do sleep 0.01; done", starts: 2, want: "exit status 7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, starts := shell(t, "")
			s.command[2] += strings.ReplaceAll(tt.script, "STARTS", starts)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- s.run(ctx) }()
			if !tt.final {
				afterStarts(t, starts, tt.starts, cancel)
			}
			err := <-ended
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if got := countStarts(t, starts); got != tt.starts {
				t.Errorf("%d starts, want %d", got, tt.starts)
			}
		})
	}
}

func TestSuperviseKillsAfterTheGrace(t *testing.T) {
	s, starts := shell(t, "trap '' TERM; ")
	s.command[2] += "echo >>" + starts + "; while :; do sleep 0.01; done"
	s.grace = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	afterStarts(t, starts, 2, cancel)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error %v, want that it was killed", err)
	}
}

func TestSuperviseWhatIsNotThere(t *testing.T) {
	s := &supervisor{command: []string{filepath.Join(t.TempDir(), "absent")}, pause: time.Millisecond}
	if err := s.run(context.Background()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want that the program does not exist", err)
	}
}
