// Package driver is the CSI face of aoe-csi: identity, controller and node services. A handler
// checks its request, asks one of the interfaces declared here and answers; it keeps no state.
//
// Handlers return plain errors around the sentinels of package volume. The server turns
// them into gRPC codes in one place, code, and logs each call once, without secrets.
package driver
