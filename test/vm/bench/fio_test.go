//go:build vm

package bench

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
)

// fio runs a job on a device.
func (r *rig) fio(device string, j *job) bench.Measurement {
	r.t.Helper()
	cpu := make(chan float64, 1)
	go func() { cpu <- r.cpuPerGB(device) }()
	out, err := r.l.TryFor(time.Minute+time.Duration(seconds)*time.Second, "fio", "--name=bench", "--filename="+device, "--ioengine=libaio", "--direct=1",
		"--rw="+j.rw, "--bs="+j.bs, fmt.Sprintf("--iodepth=%d", j.depth), "--norandommap", "--randrepeat=0", fmt.Sprintf("--size=%d", lunBytes),
		"--time_based", fmt.Sprintf("--runtime=%d", seconds), "--ramp_time=1", "--output-format=json")
	if err != nil {
		r.t.Fatalf("fio %s on %s: %v\n%s", j.name, device, err, out)
	}
	var result struct {
		Jobs []struct{ Read, Write side } `json:"jobs"`
	}
	if at := strings.Index(out, "{"); at >= 0 {
		out = out[at:]
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.Jobs) != 1 {
		r.t.Fatalf("fio's output: %v\n%s", err, out)
	}
	s := result.Jobs[0].Read
	if strings.HasSuffix(j.rw, "write") {
		s = result.Jobs[0].Write
	}
	return bench.Measurement{
		IOPS: s.IOPS, MBps: s.IOPS * float64(j.bytes) / 1e6, Mean: s.Latency.Mean / 1e3,
		P50: s.Latency.Percentile["50.000000"] / 1e3, P99: s.Latency.Percentile["99.000000"] / 1e3, CPU: <-cpu,
	}
}

// side is one direction of a job in fio's JSON; times are in nanoseconds.
type side struct {
	IOPS    float64 `json:"iops"`
	Latency struct {
		Mean       float64            `json:"mean"`
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// cpuPerGB looks at the whole VM in the midst of a job: fio's own start does not count.
func (r *rig) cpuPerGB(device string) float64 {
	path := filepath.Join("/sys/block", strings.ReplaceAll(strings.TrimPrefix(device, "/dev/"), "/", "!"), "stat")
	idle := moved(path)
	for end := time.Now().Add(patience); moved(path) < idle+64<<10 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	from, bytes := busy(r.t), moved(path)
	time.Sleep(time.Duration(seconds) * time.Second)
	return (busy(r.t) - from).Seconds() / max(moved(path)-bytes, 1) * 1e9
}

// moved is how many bytes a block device has read and written.
func moved(path string) float64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	var n [11]float64
	for i, field := range strings.Fields(string(b)) {
		if i < len(n) {
			_, _ = fmt.Sscan(field, &n[i]) // numbers, by the kernel's documentation
		}
	}
	return (n[2] + n[6]) * 512
}

// busy is the processors' time that was not idle, in the whole VM.
func busy(t *testing.T) time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Error(err)
		return 0
	}
	var user, nice, system, idle, wait, irq, softirq int64
	if _, err := fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq); err != nil {
		t.Errorf("/proc/stat: %v", err)
	}
	return time.Duration(user+nice+system+irq+softirq) * time.Second / 100 // USER_HZ
}

func parseMAC(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
