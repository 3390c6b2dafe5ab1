// Package lab sets up real parts for the tests that run in the VM: hosts as network namespaces on one
// bridge, targets, initiators, vblade, fio. Everything it starts ends with the test.
//
// The VM harness (hack/vm-test.sh) sets AOE_CSI_BIN to the binary under test.
package lab
