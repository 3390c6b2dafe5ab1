package ublk

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWithoutRights(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	effective := func() uint32 {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			t.Fatal(err)
		}
		return data[0].Effective
	}
	const admin = 1 << unix.CAP_SYS_ADMIN
	before, failure := effective(), errors.New("failure")
	err := withoutRights(func() error {
		if got := effective(); got != before&^admin {
			t.Errorf("rights %#x within, want %#x", got, before&^admin)
		}
		return failure
	})
	if got := effective(); !errors.Is(err, failure) || got != before {
		t.Errorf("afterwards: %v, rights %#x, want %#x", err, got, before)
	}
}
