// Package initiator reaches ATA-over-Ethernet targets (AoEr11 and docs/design.md, "On the wire").
//
// Core is a target's state machine: no socket, no clock, no goroutine. Shard is an event loop on a locked
// thread that owns links and devices; Device is a Core on a Shard. Data of a Request are borrowed from
// Submit until Complete. Nothing on the way of a request allocates after Attach.
package initiator
