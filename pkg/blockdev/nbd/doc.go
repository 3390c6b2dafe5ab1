// Package nbd serves block devices through the kernel's network block device driver: a socket pair instead of a
// network, generic netlink instead of a handshake.
//
// The transmission phase is doc/proto.md of the NBD project, as far as Linux's client speaks it (simple replies
// only); the control messages are include/uapi/linux/nbd-netlink.h. A queue and the data it lends belong to one
// event loop; every control call runs in a goroutine of its own with a deadline, since kernels exist in which one
// call that hangs blocks all others on the host.
package nbd
