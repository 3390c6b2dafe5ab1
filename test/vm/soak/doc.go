//go:build vm

// Package soak lives with volumes for hours: they are made, attached, written, verified, grown, detached and deleted in random order, while
// processes are killed, cables pulled and frames lost, late, twice and out of order. `make soak HOURS=1` runs it; SEED=n repeats an order
// of events, though not its timing. It ends with a table, which hack/soak.sh puts into docs/soak.md.
package soak
