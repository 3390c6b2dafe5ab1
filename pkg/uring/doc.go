// Package uring is the kernel's io_uring: rings of submissions and completions, and batches of short transfers that are done when the call
// returns, for the price of one system call.
package uring
