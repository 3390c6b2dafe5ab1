package attach

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// TestKernelDriverHasTheTarget: refused with what to do, nothing is left of the attempt, and it works when the driver has let go.
func TestKernelDriverHasTheTarget(t *testing.T) {
	b := newBench(t)
	theirs := filepath.Join(b.host.sys, "class/block/etherd!e7.1")
	if err := os.MkdirAll(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := b.m.Attach(context.Background(), options(1), 0)
	if !errors.Is(err, ErrKernelDriver) || code(err) != codes.FailedPrecondition {
		t.Fatalf("attached what the kernel's driver has: %v", err)
	}
	for _, hint := range []string{"/dev/etherd/e7.1", "unmount", "aoe-flush e7.1", "rmmod aoe"} {
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("%q is not in: %v", hint, err)
		}
	}
	if left := b.records(); len(left) > 0 || len(b.m.List()) > 0 {
		t.Errorf("left: %v, %v", left, b.m.List())
	}
	b.attach(2) // not its business
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	b.attach(1)
	// What is attached already is so: the driver, loaded later, hears our frames and makes a device nobody uses.
	if err := os.MkdirAll(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	b.attach(1)
}

// TestKernelDriverAndSessions: a target that serves us in a session takes nothing from the kernel's driver; in doubt others are refused.
func TestKernelDriverAndSessions(t *testing.T) {
	addr := options(1).Target
	for _, tt := range []struct {
		session, has bool
		err          error
		refused      bool
	}{
		{session: true, has: true},
		{session: true, err: errFake},
		{has: true, refused: true},
		{err: errFake, refused: true},
		{},
	} {
		if err := refuseKernel(addr, tt.session, tt.has, tt.err); errors.Is(err, ErrKernelDriver) != tt.refused || errors.Is(err, errFake) != (tt.refused && tt.err != nil) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
