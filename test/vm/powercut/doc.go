// Package powercut cuts the power of a target's disk while its initiator lives on: what fsync promised is there afterwards, and what may
// be gone is told of.
package powercut
