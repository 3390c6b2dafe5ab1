// Package sim runs initiators, a target and a control plane in one thread, on a virtual clock and a network in memory, and breaks
// everything that may break. One seed decides all of it: the same seed is the same run, byte for byte.
//
// The initiators' Core, the target's Shelf and the frames between them are the product's own; simulated are what they
// stand on (clock, disk, network, kernel) and who uses them. A model that knows every request checks every answer and every
// access to a simulated disk, while it happens. For tests only.
package sim
