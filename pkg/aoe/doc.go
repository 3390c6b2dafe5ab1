// Package aoe is the wire format of ATA over Ethernet, version 1 (AoEr11), and of one vendor command, OPEN (docs/design.md,
// "On the wire").
//
// Everything is a view over bytes that the caller owns: a view borrows them, is valid as long as they are, copies
// nothing and allocates nothing. Builders (Put…) write into the caller's buffer and return the length of the frame;
// they panic, as copy-like code does, if it is too short. There is no I/O here and no state; what an exchange of
// frames means is the business of packages initiator and target.
package aoe
