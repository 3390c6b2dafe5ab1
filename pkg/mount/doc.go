// Package mount makes file systems on block devices, mounts them, binds them into
// pods and measures them, over k8s.io/mount-utils. It knows nothing of volumes or CSI.
//
// Three rules run through it. A device is formatted only if it is provably blank. What is
// mounted is told by device number from mountinfo, never by looking at a path that a dead
// device may make hang. And nothing is ever removed but an empty directory or file.
package mount
