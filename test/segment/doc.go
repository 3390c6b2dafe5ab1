// Package segment has tests of several hosts on one Ethernet segment: network namespaces of this machine, each with a process of its own, real
// frames and no block devices.
package segment
