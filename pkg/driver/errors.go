package driver

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// ErrMiswired says that this process can never do its work as it was started. Probe answers FAILED_PRECONDITION then.
var ErrMiswired = errors.New("started with a configuration that cannot work")

// sentinels decide the code; the first that matches wins.
var sentinels = []struct {
	err  error
	code codes.Code
}{
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
}

// code is the one place where an error becomes a gRPC code.
func code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.code
		}
	}
	var refused interface{ Refused() bool }
	if errors.As(err, &refused) && refused.Refused() {
		return codes.FailedPrecondition
	}
	var answered interface{ GRPCStatus() *status.Status }
	if errors.As(err, &answered) {
		return ofInitiator(answered.GRPCStatus().Code())
	}
	return codes.Internal
}

// ofInitiator translates the initiator's codes, which speak of addresses and devices, into CSI's, which speak of volumes.
func ofInitiator(c codes.Code) codes.Code {
	switch c {
	case codes.NotFound:
		// Nobody answers at the address. The volume exists: CSI's NOT_FOUND would say that it does not.
		return codes.Unavailable
	case codes.FailedPrecondition, codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled,
		codes.Aborted, codes.PermissionDenied:
		return c
	}
	return codes.Internal
}

// invalid makes an error for a request that is wrong in itself.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", volume.ErrInvalid, fmt.Sprintf(format, args...))
}
