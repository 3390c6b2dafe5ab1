//go:build vm

package bench

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// profiled is what of a job's time is recorded, in seconds.
const profiled = 8

// TestProfile records where the time of each job over our ublk goes: perf for the whole machine, kernel and all, and Go's own profile of initiator and
// target. It leaves them in /results; hack/bench.sh makes a page of them.
func TestProfile(t *testing.T) {
	if os.Getenv("BENCH_PROFILE") == "" {
		t.Skip("only for hack/bench.sh profile")
	}
	guest, far := lab.Cable(t)
	r := &rig{t: t, l: guest.Lab(), guest: guest, far: far}
	r.l.Run("sh", "-c", "echo 0 >/proc/sys/kernel/kptr_restrict; echo -1 >/proc/sys/kernel/perf_event_paranoid")
	r.l.Run("perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-o", filepath.Join(r.l.Dir(), "perf.data"), "true") // it is in memory then
	seconds = 4 * profiled                                                                                              // perf takes its time to start
	for i := range jobs {
		r.profile(&jobs[i])
	}
}

// profile runs one job, with processes of its own, so that their profiles are of it.
func (r *rig) profile(j *job) {
	const addr = "e7.1"
	results := func(what string) string {
		return filepath.Join(os.Getenv("AOE_CSI_RESULTS"), strings.ReplaceAll(j.name, " ", "-")+"."+what)
	}
	target := r.lun(r.far.TargetThrough(7, lab.Binary(), "sh", "-c", `exec "$0" "$@" --cpu-profile `+results("target.pprof")), addr)
	target.MustLun("admit", addr, "--node", "bench", "--mac", r.guest.MAC)
	initiator := r.guest.InitiatorThrough(nil, "--cpu-profile", results("initiator.pprof"))
	device := initiator.Attach(addr, "--frontend", "ublk")
	r.l.Run("dd", "if=/dev/zero", "of="+device, "bs=1M", fmt.Sprintf("count=%d", lunBytes>>20), "oflag=direct")

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m := r.fio(device, j)
		r.log("%s: %.0f IOPS, with what looking costs", j.name, m.IOPS)
	}()
	path := filepath.Join("/sys/block", filepath.Base(device), "stat")
	idle := moved(path)
	r.l.Eventually(patience, "load", func() error {
		if moved(path) < idle+64<<10 {
			return fmt.Errorf("%.0f bytes", moved(path)-idle)
		}
		return nil
	})
	time.Sleep(2 * time.Second) // fio's start is over
	data := filepath.Join(r.l.Dir(), "perf.data")
	r.l.Run("perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-o", data, "sleep", fmt.Sprint(profiled))
	<-ended
	names := map[string]string{"0": "idle"}
	threads(names, "initiator", initiator.PID())
	threads(names, "target", target.PID())
	out, err := r.l.TryFor(10*patience, "perf", "report", "-i", data, "--stdio", "--no-children", "-g", "none", "-F", "overhead,pid,sym", "-t", "|")
	if err != nil {
		r.t.Fatalf("perf report: %v\n%s", err, out)
	}
	processes, functions := summed(out, names)
	if processes["initiator"] < 1 || processes["target"] < 1 {
		r.t.Errorf("perf has recorded something else: %v", processes)
	}
	for what, text := range map[string]string{"processes": rows(processes, 0.5), "functions": rows(functions, 0.7)} {
		if err := os.WriteFile(results(what), []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	initiator.Detach(addr)
	if err := initiator.Terminate(patience); err != nil {
		r.t.Errorf("initiator: %v", err)
	}
	if err := target.Terminate(patience); err != nil {
		r.t.Errorf("target: %v", err)
	}
}

// threads notes whose the threads of a process are: perf tells threads apart, not processes.
func threads(names map[string]string, name string, pid int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is a good one
	for _, task := range tasks {
		names[filepath.Base(task)] = name
	}
}

// summed adds up a report of perf, "percent|thread:command|symbol" in each line, for processes and for their functions.
func summed(report string, names map[string]string) (processes, functions map[string]float64) {
	processes, functions = map[string]float64{}, map[string]float64{}
	for line := range strings.Lines(report) {
		field := strings.SplitN(strings.TrimSpace(line), "|", 3)
		if len(field) != 3 || strings.HasPrefix(line, "#") {
			continue
		}
		percent, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(field[0]), "%"), 64)
		if err != nil {
			continue
		}
		thread, command, _ := strings.Cut(strings.TrimSpace(field[1]), ":")
		name := cmp.Or(names[thread], command)
		processes[name] += percent
		functions[fmt.Sprintf("%-12s %s", name, strings.TrimSpace(field[2]))] += percent
	}
	return processes, functions
}

// rows prints what has at least so many percent, the largest first.
func rows(of map[string]float64, percent float64) string {
	var b strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(of), func(x, y string) int { return cmp.Compare(of[y], of[x]) }) {
		if of[name] >= percent {
			fmt.Fprintf(&b, "%6.2f%%  %s\n", of[name], name)
		}
	}
	return b.String()
}
