package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// workload is what Deployments and DaemonSets have in common, and the update strategy of the latter.
type workload struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Template       corev1.PodTemplateSpec
		UpdateStrategy appsv1.DaemonSetUpdateStrategy
	}
}

// workloads reads the manifests that hack/manifests.sh renders from the chart; by the name of the main container.
func workloads(t *testing.T) map[string]workload {
	t.Helper()
	found := map[string]workload{}
	for _, name := range []string{"aoe-csi.yaml", "pool.yaml"} {
		data, err := os.ReadFile("../../manifests/" + name)
		if err != nil {
			t.Fatal(err)
		}
		addWorkloads(t, found, data)
	}
	return found
}

func addWorkloads(t *testing.T, found map[string]workload, data []byte) {
	t.Helper()
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var w workload
		switch err := documents.Decode(&w); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			t.Fatal(err)
		}
		if w.Kind == "Deployment" || w.Kind == "DaemonSet" {
			found[w.Spec.Template.Spec.Containers[0].Name] = w
		}
	}
}

// Flags that the chart uses only with other values than the defaults.
var flagsOfOtherValues = map[string][]string{
	"controller":  {"--shelf=tcp://192.0.2.7:7420", "--shelf-service=$(NAMESPACE)/aoe-csi-pools"},
	"initiator":   {"--interface=eth1,eth2"},
	"target":      {"--interface=eth1,eth2"},
	"shelf-proxy": {"--claim-policy=wipe"},
}

// The chart and the binary agree: every command line in the manifests, the probes' too, is one that the binary understands.
func TestManifestsCallTheBinaryRight(t *testing.T) {
	found := workloads(t)
	for _, name := range []string{"controller", "node", "initiator", "target", "shelf-proxy"} {
		w, ok := found[name]
		if !ok {
			t.Errorf("no workload with the container %s in the manifests", name)
			continue
		}
		for _, c := range w.Spec.Template.Spec.Containers {
			if strings.HasPrefix(c.Name, "csi-") {
				continue // a side-car
			}
			checkCommandLine(t, append(c.Args, flagsOfOtherValues[name]...))
			for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
				if probe != nil && probe.Exec != nil {
					checkCommandLine(t, probe.Exec.Command[1:])
				}
			}
		}
	}
	checkCommandLine(t, []string{"uninstall-check"})
}

func checkCommandLine(t *testing.T, args []string) {
	t.Helper()
	if args[0] == "supervise" {
		supervised, err := commandOf(args)
		if err != nil {
			t.Error(err)
			return
		}
		args = supervised
	}
	cmd, rest, err := newRootCommand().Find(args)
	if err != nil || cmd.Name() != args[0] {
		t.Errorf("aoe-csi %s: no such subcommand: %v", args[0], err)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("aoe-csi %s: %v", strings.Join(args, " "), err)
	}
}

// commandOf returns the command line of ours after "supervise … -- /aoe-csi".
func commandOf(args []string) ([]string, error) {
	before, after := slices.Index(args, "--"), slices.Index(args, "/aoe-csi")
	if before < 0 || after != before+1 || len(args) == after+1 {
		return nil, fmt.Errorf("aoe-csi %s: supervises no command of ours", strings.Join(args, " "))
	}
	return args[after+1:], nil
}

// What data flows through is replaced only by hand, and no probe restarts it.
func TestManifestsNeverRestartTheDataPath(t *testing.T) {
	found := workloads(t)
	for _, name := range []string{"initiator", "target"} {
		w := found[name]
		if w.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			t.Errorf("%s: update strategy %q, want OnDelete", w.Name, w.Spec.UpdateStrategy.Type)
		}
		for _, c := range w.Spec.Template.Spec.Containers {
			if c.LivenessProbe != nil {
				t.Errorf("%s: has a liveness probe", w.Name)
			}
			if _, limited := c.Resources.Limits[corev1.ResourceMemory]; limited {
				t.Errorf("%s: has a memory limit", w.Name)
			}
		}
	}
}

// A proxy has the storage network and nothing else of its node.
func TestProxyIsNotPrivileged(t *testing.T) {
	w := workloads(t)["shelf-proxy"]
	for _, c := range w.Spec.Template.Spec.Containers {
		s := c.SecurityContext
		switch {
		case s == nil || s.Capabilities == nil || s.AllowPrivilegeEscalation == nil:
			t.Fatalf("%s: no security context", c.Name)
		case s.Privileged != nil && *s.Privileged || *s.AllowPrivilegeEscalation:
			t.Errorf("%s: is privileged", c.Name)
		case !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, []corev1.Capability{"NET_RAW"}):
			t.Errorf("%s: capabilities %+v, want NET_RAW only", c.Name, s.Capabilities)
		}
	}
	for _, v := range w.Spec.Template.Spec.Volumes {
		if v.HostPath != nil {
			t.Errorf("mounts %s of the host", v.HostPath.Path)
		}
	}
	if spec := w.Spec.Template.Spec; !spec.HostNetwork || spec.HostPID || spec.HostIPC {
		t.Errorf("host network %v, PID %v, IPC %v", spec.HostNetwork, spec.HostPID, spec.HostIPC)
	}
}
