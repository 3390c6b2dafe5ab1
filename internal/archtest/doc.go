// Package archtest holds the arrows between our packages to the table in docs/design.md. There is nothing in it but
// the test.
package archtest
