package driver

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func TestCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{volume.ErrInvalid, codes.InvalidArgument},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrConflict, codes.AlreadyExists},
		{volume.ErrOutOfRange, codes.OutOfRange},
		{volume.ErrNoSpace, codes.ResourceExhausted},
		{volume.ErrUnavailable, codes.Unavailable},
		{volume.ErrUnauthorized, codes.Unauthenticated},
		{volume.ErrInUse, codes.FailedPrecondition},
		{volume.ErrPrecondition, codes.FailedPrecondition},
		{volume.ErrPending, codes.Aborted},
		{volume.ErrBadToken, codes.Aborted},
		{ErrMiswired, codes.FailedPrecondition},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{refusal{errors.New("holds data")}, codes.FailedPrecondition},
		{errors.New("anything else"), codes.Internal},
		// Of the initiator.
		{status.Error(codes.NotFound, "nobody answers at e7.3"), codes.Unavailable},
		{status.Error(codes.FailedPrecondition, "another volume"), codes.FailedPrecondition},
		{status.Error(codes.ResourceExhausted, "no free device"), codes.ResourceExhausted},
		{status.Error(codes.Unavailable, "try again"), codes.Unavailable},
		{status.Error(codes.DeadlineExceeded, "late"), codes.DeadlineExceeded},
		{status.Error(codes.InvalidArgument, "our mistake"), codes.Internal},
		{status.Error(codes.Unknown, "?"), codes.Internal},
		// A sentinel says more than the status below it.
		{fmt.Errorf("%w: %w", volume.ErrUnauthorized, status.Error(codes.Unavailable, "tls")), codes.Unauthenticated},
	} {
		wrapped := test.err
		if wrapped != nil {
			wrapped = fmt.Errorf("stage volume x: %w", test.err)
		}
		if got := code(wrapped); got != test.want {
			t.Errorf("code(%v) = %s, want %s", wrapped, got, test.want)
		}
	}
}
