package sim

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seeds = flag.Uint64("seeds", 0, "how many seeds to run; 0: as many as fit into -span")
	from  = flag.Uint64("from", 1, "the first seed")
	seed  = flag.Uint64("seed", 0, "the one seed to run, with a trace; 0: many")
	span  = flag.Duration("span", 12*time.Second, "how long to run seeds, without -seeds")
)

func TestMain(m *testing.M) {
	flag.Parse()
	Quiet()
	os.Exit(m.Run())
}

// TestSeeds runs many seeds, one beside the other on as many processors as there are; each run has one thread.
func TestSeeds(t *testing.T) {
	if *seed != 0 {
		replay(t, *seed)
		return
	}
	var next, requests, frames, done atomic.Uint64
	var failed atomic.Bool
	var virtual atomic.Int64
	next.Store(*from - 1)
	began := time.Now()
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for !failed.Load() {
				n := next.Add(1)
				if *seeds > 0 && n >= *from+*seeds || *seeds == 0 && time.Since(began) >= *span {
					return
				}
				sum, err := run(n)
				done.Add(1)
				requests.Add(uint64(sum.Requests))
				frames.Add(uint64(sum.Frames))
				virtual.Add(int64(sum.Time))
				if err != nil {
					failed.Store(true)
					t.Errorf("%v\nreplay it with: make sim SEED=%d", err, n)
				}
			}
		})
	}
	workers.Wait()
	took := time.Since(began)
	t.Logf("%d seeds in %v: %d requests, %d frames, %v of virtual time", done.Load(), took.Round(time.Millisecond), requests.Load(), frames.Load(),
		time.Duration(virtual.Load()).Round(time.Second))
}

// run turns a panic into a failure that names the seed.
func run(n uint64) (sum Summary, err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 16<<10)
			err = fmt.Errorf("seed %d: panic: %v\n%s", n, p, stack[:runtime.Stack(stack, false)])
		}
	}()
	return Run(Options{Seed: n})
}

// replay runs one seed with a trace.
func replay(t *testing.T, n uint64) {
	t.Helper()
	sum, err := Run(Options{Seed: n, Trace: os.Stdout})
	t.Logf("%+v", sum)
	if err != nil {
		t.Error(err)
	}
}

// TestSameSeedSameTrace: nothing but the seed decides.
func TestSameSeedSameTrace(t *testing.T) {
	for n := range uint64(20) {
		var first, second bytes.Buffer
		_, _ = Run(Options{Seed: n, Trace: &first})
		_, _ = Run(Options{Seed: n, Trace: &second})
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			a, b := bytes.Split(first.Bytes(), []byte("\n")), bytes.Split(second.Bytes(), []byte("\n"))
			for i := range min(len(a), len(b)) {
				if !bytes.Equal(a[i], b[i]) {
					t.Fatalf("seed %d: line %d differs:\n%s\n%s", n, i, a[i], b[i])
				}
			}
			t.Fatalf("seed %d: traces of %d and %d lines", n, len(a), len(b))
		}
	}
}
