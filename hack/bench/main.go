// Command bench is the part of `make bench` that needs no VM, and its report. hack/bench.sh calls it:
//
//	bench native BINARY OUT   measure over veth, in network namespaces of its own; BINARY is aoe-csi
//	bench report DIR FILE…    judge the measurements of all FILEs, write DIR; status 1 if a row is missed
//	bench full BINARY DIR VM  measure how cost grows, write DIR, with the measurements of file VM
//	bench answer IF SIZE      one end of the bare ping-pong; the other is ask
//	bench ask IF MAC SIZE DEPTH TIME
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/internal/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return errors.New("usage: bench native BINARY OUT | full BINARY DIR VM | report DIR FILE… | answer IF SIZE | ask IF MAC SIZE DEPTH TIME")
	}
	switch args[0] {
	case "native":
		return native(ctx, args[1], args[2])
	case "full":
		if len(args) != 4 {
			return errors.New("usage: bench full BINARY DIR VM")
		}
		return full(ctx, args[1], args[2], args[3])
	case "report":
		return report(args[1], args[2:])
	case "answer":
		size, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return bench.Answer(args[1], size, ctx.Done())
	case "ask":
		return ask(args[1:])
	}
	return fmt.Errorf("no command %q", args[0])
}

// ask prints "ANSWERS NANOSECONDS CPU-NANOSECONDS".
func ask(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: bench ask IF MAC SIZE DEPTH TIME")
	}
	mac, err := net.ParseMAC(args[1])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	depth, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[4])
	if err != nil {
		return err
	}
	cpu := bench.OwnCPU()
	n, took, err := bench.Ask(args[0], mac, size, depth, d)
	if err != nil {
		return err
	}
	fmt.Println(n, int64(took), int64(bench.OwnCPU()-cpu))
	return nil
}

// report judges a run. A place of which nothing was measured is not judged.
func report(dir string, files []string) error {
	var runs []bench.Measurement
	var places []string
	for _, where := range []string{bench.WhereVM, bench.WhereNative} {
		for _, file := range files {
			all, err := bench.Read(file)
			if err != nil {
				return err
			}
			if len(all) > 0 && all[0].Where == where {
				places = append(places, where)
				runs = append(runs, all...)
			}
		}
	}
	r := bench.NewReport(runs, machine(), places...)
	if err := r.Write(dir); err != nil {
		return err
	}
	fmt.Print("\n", r.Table())
	if missed := r.Missed(); len(missed) > 0 {
		return fmt.Errorf("%d rows missed:\n  %s", len(missed), strings.Join(missed, "\n  "))
	}
	return nil
}

// machine is what the figures depend on: the host, and versions that hack/bench.sh found out.
func machine() map[string]string {
	m := map[string]string{"go": runtime.Version(), "CPUs": strconv.Itoa(runtime.NumCPU())}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				m["CPU"] = strings.TrimSpace(value)
				break
			}
		}
	}
	for _, pair := range os.Environ() {
		if name, value, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "BENCH_VERSION_") && value != "" {
			m[strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "BENCH_VERSION_"), "_", "-"))] = value
		}
	}
	return m
}
