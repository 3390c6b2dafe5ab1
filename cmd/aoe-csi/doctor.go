package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/attach"
)

func init() { commands = append(commands, newDoctorCommand) }

// The levels of findings.
const (
	levelProblem = "problem" // something does not work, or may not
	levelNote    = "note"    // worth knowing; nothing is wrong
)

// finding is something that the doctor says.
type finding struct {
	Level   string `json:"level"`
	Object  string `json:"object"`
	What    string `json:"what"`
	Todo    string `json:"todo"`
	Fixable bool   `json:"fixable"` // --fix would repair it
	Fixed   bool   `json:"fixed"`
}

func problem(object, todo, format string, args ...any) finding {
	return finding{Level: levelProblem, Object: object, What: fmt.Sprintf(format, args...), Todo: todo}
}

func note(object, todo, format string, args ...any) finding {
	return finding{Level: levelNote, Object: object, What: fmt.Sprintf(format, args...), Todo: todo}
}

// doctor looks at one host.
type doctor struct {
	clientOptions
	runDir, stateDir string
	fix, yes         bool
	wait             time.Duration
	system           system
}

func newDoctorCommand() *cobra.Command {
	d := doctor{system: system{root: "/"}}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong with volumes on this host, and say what to do",
		Long: `Doctor looks at the front ends, the devices in the kernel and the records of attachments, the initiator and the targets on the
wire. Without a running initiator it looks at what can be seen on the host. It changes nothing without --fix, which repairs only what
is safe: it removes devices that nobody knows of, serves or uses. It ends with status 1 if problems remain.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&d.runDir, "run-dir", "/run/aoe-csi", "the initiator's run directory")
	flags.StringVar(&d.stateDir, "state-dir", "/var/lib/aoe-csi/initiator", "the initiator's state directory")
	flags.BoolVar(&d.fix, "fix", false, "repair what is safe to repair")
	flags.BoolVar(&d.yes, "yes", false, "with --fix: do not ask")
	flags.DurationVar(&d.wait, "wait", time.Second, "how long to wait for targets to answer on the wire")
	d.add(cmd, "table", "json")
	return cmd
}

func (d *doctor) run(cmd *cobra.Command) error {
	if d.fix && !d.yes && d.output == "json" {
		return errors.New("--fix with -o json needs --yes: there is nobody to ask")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), d.wait+2*callTimeout)
	defer cancel()
	findings := d.look(ctx, false)
	if fixable := count(findings, func(f finding) bool { return f.Fixable }); d.fix && fixable > 0 {
		if !d.yes {
			if err := printFindings(cmd.OutOrStdout(), findings); err != nil {
				return err
			}
			if !agreed(cmd, fixable) {
				return errors.New("nothing was repaired")
			}
		}
		findings = d.look(ctx, true)
	}
	if err := d.print(cmd.OutOrStdout(), findings); err != nil {
		return err
	}
	if left := count(findings, func(f finding) bool { return f.Level == levelProblem && !f.Fixed }); left > 0 {
		return fmt.Errorf("%d of what was found needs attention", left)
	}
	return nil
}

// look asks the initiator, and the host itself.
func (d *doctor) look(ctx context.Context, fix bool) []finding {
	var findings []finding
	err := d.call(ctx, func(ctx context.Context, client initiatorv1.InitiatorClient) error {
		node, err := client.GetNode(ctx, &initiatorv1.GetNodeRequest{})
		if err != nil {
			return err
		}
		findings = append(findings, nodeFindings(node)...)
		findings = append(findings, d.attachments(ctx, client)...)
		findings = append(findings, d.examine(ctx, client, fix)...)
		findings = append(findings, d.targets(ctx, client)...)
		return nil
	})
	if err == nil {
		findings = append(findings, d.system.initiator(d.socket)...)
	} else {
		findings = append(findings, problem("initiator", "start it (in a cluster: the pod aoe-csi-initiator of this node); volumes that are attached wait for it", "%v", err))
		findings = append(findings, d.offline(ctx, fix)...)
	}
	return append(findings, d.system.frontends()...)
}

// nodeFindings is what the initiator says of front ends and interfaces.
func nodeFindings(node *initiatorv1.GetNodeResponse) []finding {
	var findings []finding
	available := 0
	for _, f := range node.GetFrontends() {
		if f.GetAvailable() {
			available++
		}
	}
	for _, f := range node.GetFrontends() {
		if f.GetAvailable() {
			continue
		}
		add, todo := problem, "without any front end nothing can be attached here: load one of their modules"
		if available > 0 {
			add, todo = note, "nothing, as another one works"
		}
		findings = append(findings, add("front end "+f.GetName(), todo, "not available: %s", f.GetReason()))
	}
	if len(node.GetInterfaces()) == 0 {
		findings = append(findings, note("interfaces", "start the initiator with --interface (chart: storageInterface)",
			"the initiator uses no network interface, so it reaches targets on this host only"))
	}
	for _, i := range node.GetInterfaces() {
		if !i.GetUp() {
			findings = append(findings, problem("interface "+i.GetName(), "ip link set "+i.GetName()+" up; is the cable in?", "it is down, or gone"))
		}
	}
	return findings
}

// stuckAfter is how long coming and going may take before it is worth a word.
const stuckAfter = 30 * time.Second

// attachments are those that do not work as they should.
func (d *doctor) attachments(ctx context.Context, client initiatorv1.InitiatorClient) []finding {
	list, err := client.List(ctx, &initiatorv1.ListRequest{})
	if err != nil {
		return []finding{problem("attachments", "look at the initiator's log", "%v", d.explain(err))}
	}
	var findings []finding
	for _, a := range list.GetAttachments() {
		object := "volume " + a.GetVolumeId()
		since := time.Since(a.GetSince().AsTime()).Round(time.Second)
		todo := "bring its target back, then it goes on; `aoe-csi discover " + targetName(a.GetTarget()) + "` shows who answers"
		if a.GetState() == "failed" {
			todo = "unmount and detach it; check its data before it is used again"
		}
		if (a.GetState() == "attaching" || a.GetState() == "detaching") && since < stuckAfter {
			continue
		}
		if a.GetState() != "live" {
			findings = append(findings, problem(object, todo, "%s is %s for %v: %s", orDash(a.GetDevice()), a.GetState(), since, orDash(a.GetMessage())))
			continue
		}
		for _, p := range a.GetPaths() {
			if p.GetState() == "down" {
				findings = append(findings, problem(object, "check interface, switch and target on that path; the others carry its I/O",
					"path %s to %s is down: %s", p.GetInterface(), orDash(p.GetRemoteMac()), orDash(p.GetMessage())))
			}
		}
	}
	return findings
}

// examine has the initiator compare devices and records.
func (d *doctor) examine(ctx context.Context, client initiatorv1.InitiatorClient, fix bool) []finding {
	examined, err := client.Examine(ctx, &initiatorv1.ExamineRequest{Fix: fix})
	if status.Code(err) == codes.Unimplemented {
		return []finding{note("initiator", "restart it with this version", "it is too old to compare devices and records")}
	}
	if err != nil {
		return []finding{problem("devices", "look at the initiator's log", "they could not be examined: %v", d.explain(err))}
	}
	var findings []finding
	for _, f := range examined.GetFindings() {
		findings = append(findings, finding{Level: levelProblem, Object: f.GetObject(), What: f.GetWhat(), Todo: f.GetTodo(),
			Fixable: f.GetFixable(), Fixed: f.GetFixed()})
	}
	return findings
}

// targets finds addresses at which more than one volume answers.
func (d *doctor) targets(ctx context.Context, client initiatorv1.InitiatorClient) []finding {
	found, err := client.Discover(ctx, &initiatorv1.DiscoverRequest{Wait: durationpb.New(d.wait)})
	if err != nil {
		return []finding{problem("network", "check the interfaces that the initiator was given", "targets could not be asked: %v", d.explain(err))}
	}
	return twoAnswers(found)
}

func twoAnswers(found *initiatorv1.DiscoverResponse) []finding {
	var findings []finding
	first := make(map[string]*initiatorv1.Discovered)
	told := make(map[string]bool)
	for _, t := range found.GetTargets() {
		name := targetName(t.GetTarget())
		other := first[name]
		if other == nil {
			first[name] = t
			continue
		}
		same := other.GetSerial() == t.GetSerial() && string(other.GetConfig()) == string(t.GetConfig())
		if same || told[name] {
			continue
		}
		told[name] = true
		findings = append(findings, problem("target "+name, "give one of the two shelves another number; a device of the driver uses the right one only",
			"two volumes answer at this address: %s (serial %s) and %s (serial %s)", other.GetMac(), orDash(printable(other.GetSerial())),
			t.GetMac(), orDash(printable(t.GetSerial()))))
	}
	return findings
}

// offline compares devices and records without an initiator.
func (d *doctor) offline(ctx context.Context, fix bool) []finding {
	fronts, err := (&initiatorOptions{frontend: attach.FrontendAuto}).frontends()
	if err != nil {
		return []finding{problem("front ends", "this is a bug", "%v", err)}
	}
	findings := d.system.probe(ctx, fronts)
	examined, err := attach.ExamineHost(ctx, d.runDir, d.stateDir, fronts, fix)
	switch {
	case errors.Is(err, attach.ErrRunning):
		findings = append(findings, problem("initiator", "look at its log; if it hangs, restart it: its devices wait",
			"it runs (it has %s locked), but does not answer at %s, so devices and records were not compared", d.runDir, d.socket))
	case err != nil:
		findings = append(findings, problem("devices", "run it as root, on the host", "they could not be examined: %v", err))
	}
	for _, f := range examined {
		findings = append(findings, finding{Level: levelProblem, Object: f.Object, What: f.What, Todo: f.Todo, Fixable: f.Fixable, Fixed: f.Fixed})
	}
	return findings
}

func count(findings []finding, is func(finding) bool) int {
	n := 0
	for _, f := range findings {
		if is(f) {
			n++
		}
	}
	return n
}

// agreed asks whether to repair.
func agreed(cmd *cobra.Command, fixable int) bool {
	fmt.Fprintf(cmd.OutOrStdout(), "Repair %d of them? [y/N] ", fixable)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return (err == nil || errors.Is(err, io.EOF)) && (answer == "y" || answer == "yes")
}

func (d *doctor) print(out io.Writer, findings []finding) error {
	if d.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(struct {
			Findings []finding `json:"findings"`
		}{append([]finding{}, findings...)})
	}
	return printFindings(out, findings)
}

func printFindings(out io.Writer, findings []finding) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintln(out, "Nothing is wrong.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "LEVEL\tOBJECT\tWHAT\tWHAT TO DO\t--fix")
	for _, f := range findings {
		fix := "no"
		switch {
		case f.Fixed:
			fix = "done"
		case f.Fixable:
			fix = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.Level, printable(f.Object), printable(f.What), printable(f.Todo), fix)
	}
	return w.Flush()
}
