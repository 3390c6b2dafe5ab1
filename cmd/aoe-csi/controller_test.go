package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestControllerOptions(t *testing.T) {
	tests := []struct {
		args string
		want string // in the error; empty: accepted
	}{
		{"--store /tmp/x --shelf unix:///run/s.sock", ""},
		{"--store /tmp/x --shelf tcp://10.0.0.1:7420 --tls-ca a --tls-cert b --tls-key c", ""},
		{"--shelf-service ns/name --tls-secret-namespace ns --leader-election --namespace ns", ""},
		{"--shelf-service ns/name --shelf-service ns/pools --tls-secret-namespace ns", ""},
		{"--store /tmp/x", "no shelf"},
		{"--shelf http://10.0.0.1", "want tcp://host:port"},
		{"--shelf tcp://10.0.0.1", "want tcp://host:port"},
		{"--shelf tcp://10.0.0.1:7420", "needs certificates"},
		{"--shelf-service name --tls-secret-namespace ns", "not namespace/name"},
		{"--shelf-service ns/name --shelf-service ns/a/b --tls-secret-namespace ns", "\"ns/a/b\" is not namespace/name"},
		{"--shelf-service ns/name", "needs certificates"},
		{"--store /tmp/x --shelf unix:///s --leader-election --namespace ns", "cannot elect a leader"},
		{"--shelf unix:///s --leader-election", "needs --namespace"},
		{"--shelf unix:///s --tls-ca a", "tls-cert"},
		{"extra", "unknown command"},
	}
	for _, tt := range tests {
		cmd := newControllerCommand()
		ran := false
		cmd.RunE = func(*cobra.Command, []string) error { ran = true; return nil }
		cmd.SetArgs(strings.Fields(tt.args))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.Execute()
		switch {
		case tt.want == "" && (err != nil || !ran):
			t.Errorf("%s: %v", tt.args, err)
		case tt.want != "" && (err == nil || ran || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want %q", tt.args, err, tt.want)
		}
	}
}
