// Package link moves Ethernet frames: over AF_PACKET, over a unix socket to a target on the same
// host, or (package linktest) over a simulated network that loses, delays, duplicates and reorders.
//
// Frames to send are the pool's: a link holds them while the network reads them. Received frames are lent until
// the next Receive.
package link
