// Package ublk serves block devices through the kernel's ublk driver: requests arrive and are answered as io_uring commands
// on /dev/ublkcN, and their data stay in the kernel's pages until the initiator copies them into a frame, or out of one.
//
// Command numbers and structures are include/uapi/linux/ublk_cmd.h, their rules drivers/block/ublk_drv.c as of Linux 6.12.117.
// A queue belongs to one event loop, whose thread is the kernel's "daemon" of the device: when that thread
// ends, the kernel keeps all requests for the next server (USER_RECOVERY and REISSUE).
package ublk
