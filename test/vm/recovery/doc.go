// Package recovery kills the initiator, holds frames back, takes memory and targets away, on real devices, and shows that no I/O fails
// and nothing is left behind.
//
// FRONTEND=ublk or nbd runs everything with that front end, otherwise with each. It is shortened unless FULL=1; a line
// says by how much. Figures are lines that begin with "figure:". vm.env beside this file is the machine that it needs.
package recovery
