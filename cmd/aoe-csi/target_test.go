package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestShelfLabelValue(t *testing.T) {
	for _, test := range []struct {
		name   string
		labels map[string]string
		want   uint16
		fail   string
	}{
		{"number", map[string]string{shelfLabel: "7"}, 7, ""},
		{"largest", map[string]string{shelfLabel: "65534"}, 65534, ""},
		{"wildcard", map[string]string{shelfLabel: "65535"}, 0, "not a number from 0 to 65534"},
		{"too large", map[string]string{shelfLabel: "70000"}, 0, "not a number"},
		{"word", map[string]string{shelfLabel: "seven"}, 0, "not a number"},
		{"none", map[string]string{"other": "7"}, 0, "kubectl label node n " + shelfLabel + "=N"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := shelfLabelValue("n", test.labels)
			if test.fail == "" && (err != nil || got != test.want) {
				t.Fatalf("%d, %v", got, err)
			}
			if test.fail != "" && (err == nil || !strings.Contains(err.Error(), test.fail)) {
				t.Fatalf("%v, want %q", err, test.fail)
			}
		})
	}
}

func TestTargetRefuses(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "none")
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"two numbers", []string{"--shelf", "7", "--shelf-from-node", "n"}, "none of the others can be"},
		{"number out of range", []string{"--shelf", "70000"}, "out of range"},
		{"wildcard", []string{"--shelf", "65535"}, "the largest is 65534"},
		{"no number for a new directory", nil, "needs a shelf number"},
		{"listen without certificates", []string{"--shelf", "7", "--listen", ":0"}, "tls-ca"},
		{"certificates that are not there", []string{"--shelf", "7", "--listen", ":0", "--tls-cert", "/none", "--tls-key", "/none", "--tls-ca", "/none"}, "certificates"},
		{"interface that is not there", []string{"--shelf", "7", "--interface", "none0"}, "interface none0"},
		{"no cluster access", []string{"--shelf-from-node", "n", "--kubeconfig", kubeconfig}, "cluster access"},
		{"an argument", []string{"7"}, "unknown command"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := newRootCommand()
			dir := t.TempDir()
			root.SetArgs(append([]string{"target", "--lock-memory=false", "--dir", dir + "/d", "--run-dir", dir}, test.args...))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := root.ExecuteContext(ctx); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, want %q", err, test.want)
			}
		})
	}
}

// Two processes of one shelf exclude each other by its directory.
func TestTargetLocksItsDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lock := holdLock(t, filepath.Join(dir, "lock"))
	defer func() { _ = lock.Close() }()
	root := newRootCommand()
	root.SetArgs([]string{"target", "--lock-memory=false", "--shelf", "7", "--dir", dir, "--run-dir", t.TempDir(), "--interface", "lo"})
	if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatal(err)
	}
}

func holdLock(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return f
}
