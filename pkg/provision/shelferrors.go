package provision

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// ShelfError is what went wrong with a shelf. It is (errors.Is) the sentinel of package
// volume that decides what to do.
type ShelfError struct {
	Op       string
	Shelf    string // "shelf 7", or "shelf" while the number is not known
	Address  string
	Sentinel error // nil: nothing that a caller could decide on
	Err      error
}

func (e *ShelfError) Error() string {
	what := e.Shelf + " at " + e.Address
	if e.Op != "" {
		what += ", " + e.Op
	}
	if e.Sentinel == nil {
		return fmt.Sprintf("%s: %s", what, e.Err)
	}
	return fmt.Sprintf("%s: %s: %s", what, e.Sentinel, e.Err)
}

// Unwrap makes errors.Is find the sentinel.
func (e *ShelfError) Unwrap() []error {
	if e.Sentinel == nil {
		return []error{e.Err}
	}
	return []error{e.Sentinel, e.Err}
}

// sentinels maps the codes of proto/shelf/v1.
var sentinels = map[codes.Code]error{
	codes.InvalidArgument:    volume.ErrInvalid,
	codes.NotFound:           volume.ErrNotFound,
	codes.AlreadyExists:      volume.ErrConflict,
	codes.OutOfRange:         volume.ErrOutOfRange,
	codes.ResourceExhausted:  volume.ErrNoSpace,
	codes.FailedPrecondition: volume.ErrInUse,
	codes.Aborted:            volume.ErrPending,
	codes.Unavailable:        volume.ErrUnavailable,
	codes.DeadlineExceeded:   volume.ErrUnavailable,
	codes.Canceled:           volume.ErrUnavailable,
	codes.Unauthenticated:    volume.ErrUnauthorized,
	codes.PermissionDenied:   volume.ErrUnauthorized,
}

// sentinelOf decides what a failed call means.
func sentinelOf(err error) (sentinel, cause error) {
	st, ok := status.FromError(err)
	if !ok {
		return nil, err
	}
	if st.Code() == codes.Unavailable && aboutTLS(st.Message()) {
		return volume.ErrUnauthorized, errors.New(st.Message())
	}
	return sentinels[st.Code()], errors.New(st.Message())
}

// aboutTLS tells a certificate that is refused, by either side, from a connection that
// does not come about. gRPC reports both as Unavailable, with the cause as text only.
func aboutTLS(message string) bool {
	return strings.Contains(message, "tls: ") || strings.Contains(message, "x509: ")
}
