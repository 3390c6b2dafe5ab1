// Package blockdev is the small asynchronous interface behind which the kernel's ways to a
// block device in user space look alike: requests come out, completions go in, in any order.
//
// Package nbd implements it over generic netlink. A Queue belongs to one event loop; control calls
// (Start, Stop, Resize) belong to other goroutines, since kernels exist on which they block.
package blockdev
