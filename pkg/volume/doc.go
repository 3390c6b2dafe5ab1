// Package volume holds what controller, node and stores agree on: identifiers,
// requests, sentinel errors and the interface of the intent store. It does no I/O.
package volume
