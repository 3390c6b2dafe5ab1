// Package shelf serves the shelf API (proto/shelf/v1) over a target: gRPC with mutual TLS for controllers, plain on a unix
// socket for root on the same host. It checks requests, calls the target, and maps its errors to codes; it keeps no state.
// The makers of certificates for both sides are here, too.
package shelf
