package pool

// poison is what free frames are filled with in tests.
const poison = 0xcc

// Frame is a buffer for one Ethernet frame. It is born with one hold, its owner's.
type Frame struct {
	pool    *Pool
	next    *Frame // in a free list
	buf     []byte
	len     int
	holds   int
	id      int
	reserve bool
}

// ID numbers the frames of a pool from 0, for logs and tests.
func (f *Frame) ID() int { return f.id }

// Buf is the whole buffer, FrameSize bytes; writing is for the owner while the frame is not Shared.
func (f *Frame) Buf() []byte { return f.buf }

// Bytes is what SetLen says is the frame, Ethernet header first.
func (f *Frame) Bytes() []byte { return f.buf[:f.len] }

// SetLen sets the frame's length in bytes, at most len(Buf).
func (f *Frame) SetLen(n int) {
	_ = f.buf[:n]
	f.len = n
}

// Hold says that someone else may read the frame until a Release.
func (f *Frame) Hold() {
	if f.holds <= 0 {
		panic("pool: hold of a free frame")
	}
	f.holds++
}

// Release gives up one hold. The last one returns the frame to its pool: nobody may touch it after.
func (f *Frame) Release() {
	if f.holds <= 0 {
		panic("pool: release of a free frame")
	}
	f.holds--
	if f.holds == 0 {
		f.pool.put(f)
	}
}

// Shared says whether someone beside the owner holds the frame: its bytes must stay as they are.
func (f *Frame) Shared() bool { return f.holds > 1 }
