package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
)

// sickInitiator has what the test gives it.
type sickInitiator struct {
	initiatorv1.UnimplementedInitiatorServer
	node        *initiatorv1.GetNodeResponse
	attachments []*initiatorv1.Attachment
	findings    []*initiatorv1.Finding
	targets     []*initiatorv1.Discovered
	fixed       int
}

func (s *sickInitiator) GetNode(context.Context, *initiatorv1.GetNodeRequest) (*initiatorv1.GetNodeResponse, error) {
	return s.node, nil
}

func (s *sickInitiator) List(context.Context, *initiatorv1.ListRequest) (*initiatorv1.ListResponse, error) {
	return &initiatorv1.ListResponse{Attachments: s.attachments}, nil
}

func (s *sickInitiator) Discover(context.Context, *initiatorv1.DiscoverRequest) (*initiatorv1.DiscoverResponse, error) {
	return &initiatorv1.DiscoverResponse{Targets: s.targets}, nil
}

func (s *sickInitiator) Examine(_ context.Context, r *initiatorv1.ExamineRequest) (*initiatorv1.ExamineResponse, error) {
	if r.GetFix() {
		for _, f := range s.findings {
			if f.GetFixable() {
				f.Fixed = true
				s.fixed++
			}
		}
	}
	return &initiatorv1.ExamineResponse{Findings: s.findings}, nil
}

func (s *sickInitiator) start(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "initiator.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	initiatorv1.RegisterInitiatorServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return socket
}

// healthy is a node with nothing to say about it.
func healthy() *sickInitiator {
	return &sickInitiator{
		node: &initiatorv1.GetNodeResponse{
			Frontends:  []*initiatorv1.Frontend{{Name: "ublk", Available: true}, {Name: "nbd", Available: true}},
			Interfaces: []*initiatorv1.Interface{{Name: "eth1", Up: true}},
		},
		attachments: []*initiatorv1.Attachment{{VolumeId: "v", State: "live", Since: timestamppb.Now(), Paths: []*initiatorv1.Path{{Interface: "eth1", State: "up"}}}},
		targets: []*initiatorv1.Discovered{
			{Target: &initiatorv1.Target{Shelf: 7}, Serial: "a", Interface: "eth1", Mac: "02:00:00:00:00:01"},
			{Target: &initiatorv1.Target{Shelf: 7}, Serial: "a", Interface: "eth2", Mac: "02:00:00:00:00:02"}, // two ways to one
		},
	}
}

// fakeSystem makes files below a root; by default of a host that has everything.
func fakeSystem(t *testing.T, files map[string]string) system {
	t.Helper()
	all := map[string]string{
		"sys/module/ublk_drv/parameters/ublks_max": "64\n", "dev/ublk-control": "", "sys/module/nbd/x": "",
		"proc/sys/kernel/io_uring_disabled": "0\n",
	}
	for name, content := range files {
		all[name] = content
	}
	root := t.TempDir()
	for name, content := range all {
		if content == "absent" {
			continue
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return system{root}
}

// examined is what the doctor prints, without what it sees of the real machine.
func examined(t *testing.T, s *sickInitiator, input string, d doctor) (string, error) {
	t.Helper()
	d.socket, d.runDir, d.stateDir, d.wait, d.system = s.start(t), t.TempDir(), t.TempDir(), time.Millisecond, fakeSystem(t, nil)
	if d.output == "" {
		d.output = "table"
	}
	cmd := newDoctorCommand()
	cmd.SetContext(t.Context())
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetIn(strings.NewReader(input))
	err := d.run(cmd)
	var lines []string
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, "without CAP_SYS_ADMIN") && !strings.Contains(line, "its process cannot be seen") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, ""), err
}

func TestDoctorFindsNothing(t *testing.T) {
	s := healthy()
	s.attachments = append(s.attachments, &initiatorv1.Attachment{VolumeId: "w", State: "attaching", Since: timestamppb.Now()})
	out, err := examined(t, s, "", doctor{})
	if err != nil || strings.Contains(out, levelProblem) || strings.Contains(out, "two volumes") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDoctorFinds(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sick    func(s *sickInitiator)
		level   string
		want    []string
		healthy bool // ends with 0
	}{
		{"one front end missing", func(s *sickInitiator) {
			s.node.Frontends[0] = &initiatorv1.Frontend{Name: "ublk", Reason: "no module"}
		}, levelNote, []string{"front end ublk", "no module", "another one works"}, true},
		{"no front end", func(s *sickInitiator) { s.node.Frontends = []*initiatorv1.Frontend{{Name: "nbd", Reason: "no module"}} },
			levelProblem, []string{"front end nbd", "no module"}, false},
		{"interface down", func(s *sickInitiator) { s.node.Interfaces[0].Up = false }, levelProblem, []string{"interface eth1", "down"}, false},
		{"stalled", func(s *sickInitiator) { s.attachments[0].State, s.attachments[0].Message = "stalled", "no answer" },
			levelProblem, []string{"volume v", "stalled", "no answer"}, false},
		{"stuck", func(s *sickInitiator) {
			s.attachments[0].State, s.attachments[0].Since = "detaching", timestamppb.New(time.Now().Add(-time.Hour))
		}, levelProblem, []string{"volume v", "detaching", "1h0m"}, false},
		{"path down", func(s *sickInitiator) { s.attachments[0].Paths[0].State = "down" }, levelProblem, []string{"path eth1", "down"}, false},
		{"left over", func(s *sickInitiator) {
			s.findings = []*initiatorv1.Finding{{Object: "device /dev/nbd3", What: "nobody's", Todo: "do it", Fixable: true}}
		}, levelProblem, []string{"device /dev/nbd3", "nobody's", "do it", "yes"}, false},
		{"two volumes at one address", func(s *sickInitiator) { s.targets[1].Serial = "b" },
			levelProblem, []string{"target e7.0", "02:00:00:00:00:01", "02:00:00:00:00:02"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := healthy()
			tt.sick(s)
			out, err := examined(t, s, "", doctor{})
			if (err == nil) != tt.healthy {
				t.Errorf("ended with %v", err)
			}
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, tt.level) && strings.Contains(line, tt.want[0]) {
					for _, text := range tt.want {
						if !strings.Contains(line, text) {
							t.Errorf("%q does not say %q", line, text)
						}
					}
					return
				}
			}
			t.Errorf("no %s about %s in\n%s", tt.level, tt.want[0], out)
		})
	}
}

func TestDoctorFixes(t *testing.T) {
	sick := func() *sickInitiator {
		s := healthy()
		s.findings = []*initiatorv1.Finding{{Object: "device /dev/nbd3", What: "nobody's", Fixable: true}}
		return s
	}
	for _, tt := range []struct {
		name  string
		input string
		d     doctor
		fixed int
		ok    bool
	}{
		{"not asked to", "y\n", doctor{}, 0, false},
		{"agreed", "y\n", doctor{fix: true}, 1, true},
		{"not agreed", "\n", doctor{fix: true}, 0, false},
		{"nobody there", "", doctor{fix: true}, 0, false},
		{"agreed before", "", doctor{fix: true, yes: true}, 1, true},
		{"for a program, which cannot agree", "y\n", doctor{fix: true, clientOptions: clientOptions{output: "json"}}, 0, false},
	} {
		s := sick()
		out, err := examined(t, s, tt.input, tt.d)
		if s.fixed != tt.fixed || (err == nil) != tt.ok {
			t.Errorf("%s: %d fixed, %v\n%s", tt.name, s.fixed, err, out)
		}
	}
	s := sick()
	s.findings = append(s.findings, &initiatorv1.Finding{Object: "device /dev/nbd4", What: "mounted"})
	out, err := examined(t, s, "", doctor{fix: true, yes: true, clientOptions: clientOptions{output: "json"}})
	var told struct{ Findings []finding }
	if jsonErr := json.Unmarshal([]byte(out), &told); jsonErr != nil || len(told.Findings) < 2 || !told.Findings[0].Fixed || told.Findings[1].Fixed {
		t.Errorf("%v: %s", jsonErr, out)
	}
	if err == nil {
		t.Error("ended well, though one is left")
	}
}

func TestDoctorWithoutInitiator(t *testing.T) {
	out, err := execute(t, "doctor", "--socket", filepath.Join(t.TempDir(), "none"), "--run-dir", t.TempDir(), "--state-dir", t.TempDir(), "-o", "json")
	var told struct{ Findings []finding }
	if jsonErr := json.Unmarshal([]byte(out), &told); jsonErr != nil || err == nil || len(told.Findings) == 0 ||
		!strings.Contains(told.Findings[0].What, "not running") {
		t.Errorf("%v, %v: %s", err, jsonErr, out)
	}
}

func TestSystem(t *testing.T) {
	process := func(flags, locked, score string) map[string]string {
		return map[string]string{
			"proc/17/stat":   "17 (a ) b) S 1 17 17 0 -1 " + flags + " 0 0",
			"proc/17/status": "Name:\tx\nVmLck:\t" + locked + " kB\n", "proc/17/oom_score_adj": score + "\n",
		}
	}
	devices := func(n int) map[string]string {
		files := map[string]string{"sys/module/ublk_drv/parameters/ublks_max": "4\n"}
		for _, name := range []string{"ublkb0", "ublkb1", "ublkb2", "ublkb3"}[:n] {
			files["sys/block/"+name+"/size"] = "1"
		}
		return files
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		level string
		want  string // empty: nothing
	}{
		{"all is well", process("1572864", "64", "-1000"), "", ""},
		{"no module ublk_drv", map[string]string{"sys/module/ublk_drv/parameters/ublks_max": "absent"}, levelNote, "ublk: its module"},
		{"no ublk-control", map[string]string{"dev/ublk-control": "absent"}, levelNote, "/dev/ublk-control"},
		{"io_uring off", map[string]string{"proc/sys/kernel/io_uring_disabled": "2\n"}, levelNote, "is 2: nobody"},
		{"no module nbd", map[string]string{"sys/module/nbd/x": "absent"}, levelNote, "nbd: its module"},
		{"room for devices", devices(2), "", ""},
		{"little room for devices", devices(3), levelNote, "3 of 4"},
		{"no room for devices", devices(4), levelProblem, "4 of 4"},
		{"no flusher", process("1048576", "64", "-1000"), levelProblem, "no I/O flusher"},
		{"not locked", process("1572864", "0", "-1000"), levelProblem, "not locked"},
		{"to be killed", process("1572864", "64", "0"), levelProblem, "killed"},
	} {
		s := fakeSystem(t, tt.files)
		var told []string
		for _, f := range append(s.frontends(), s.process(17)...) {
			if f.Object != "doctor" { // about this test's own rights
				told = append(told, f.Level+" "+f.Object+": "+f.What)
			}
		}
		text := strings.Join(told, "\n")
		if (tt.want == "") != (text == "") || !strings.Contains(text, tt.want) || !strings.HasPrefix(text, tt.level) || len(told) > 1 {
			t.Errorf("%s: %q; want %s %q", tt.name, text, tt.level, tt.want)
		}
	}
}
