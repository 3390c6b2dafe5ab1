//go:build invariants || race

package initiator

// checked has every call end with check.
const checked = true
