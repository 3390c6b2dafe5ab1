// Package linktest is an Ethernet segment in memory that loses, delays, duplicates and reorders frames, and that goes on
// reading sent ones for a while, as a network card does.
//
// With a seed and a virtual clock (Advance) every run is the same; one goroutine then drives network and links.
// With Start the clock is the real one, and each link belongs to its own thread, as a real link does: its FD works with epoll.
package linktest
