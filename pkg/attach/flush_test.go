package attach

import (
	"strings"
	"testing"
)

// TestMakeDurable: the target is flushed without the kernel, and by another process is written back what a user of the device may have left.
func TestMakeDurable(t *testing.T) {
	b := newBench(t)
	b.attach(1)
	a := b.m.get("e7.1")
	path, dev := a.device().Path(), a.target()
	if err := a.makeDurable(path, dev); err != nil {
		t.Fatal(err)
	}
	if got := dev.Stats().Flushes; got != 1 {
		t.Errorf("the target was flushed %d times", got)
	}
	b.m.cfg.host = host{} // cannot tell who uses the device
	// The test's device is a file, whose buffers blockdev cannot flush.
	if err := a.makeDurable(path, dev); err == nil || !strings.Contains(err.Error(), "blockdev") {
		t.Errorf("write-back of a device that may be in use: %v, want blockdev's failure", err)
	}
}
