// Command testsum reads the events of `go test -json` (or test2json) and reports them: the output of what failed, lines
// that begin with "figure: ", a line for each package, and a sum. With -count FILE it also leaves "PASSED FAILED" there, for the sum over all suites.
//
// A test is counted once, by its innermost subtests. A skipped test counts as failed: a suite that quietly leaves something out
// proves nothing. So does a package that does not build or dies.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	countFile := flag.String("count", "", "file that takes the number of tests passed and failed")
	verbose := flag.Bool("v", false, "print the output of passed tests, too, as it comes")
	flag.Parse()
	sum := newSummary(os.Stdout, *verbose)
	if err := sum.read(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "testsum: %v\n", err)
		os.Exit(2)
	}
	passed, failed := sum.finish()
	if *countFile != "" {
		if err := os.WriteFile(*countFile, fmt.Appendf(nil, "%d %d\n", passed, failed), 0o644); err != nil {
			fmt.Fprintf(os.Stderr, "testsum: %v\n", err)
			os.Exit(2)
		}
	}
	if failed > 0 {
		os.Exit(1)
	}
}
