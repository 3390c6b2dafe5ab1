// Package pool keeps the frames that are sent: pre-allocated outside the Go heap for what a window uses, one more at a
// time while the network still holds them all, never past a ceiling.
//
// A frame is not written or reused while anything may still read it: everyone who may holds it (Frame.Hold), and the last
// Release returns it to the pool. Received frames are not the pool's. A pool, its frames included, belongs to one
// thread; only Stats is for everybody.
package pool
