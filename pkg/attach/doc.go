// Package attach joins targets to block devices: a Manager holds the node's attachments, a pump moves each one's
// requests between its front end and its target, and records under /run let a later process find again what an
// earlier one left. Server puts the initiator's API (initiator/v1) in front.
//
// Requests and their data belong to the front end's queue; the pump lends them to the target from Submit until Complete.
// Everything of a pump happens on its shard's thread; control calls come from other goroutines.
package attach
