// Package target is a shelf: an ATA-over-Ethernet server for up to 255 LUNs kept in one directory.
//
// A Shelf owns the directory (metadata in bbolt, one sparse file a LUN) and is edited by Create, Delete, Grow, Admit and
// Expel; Serve answers frames on one link. One loop per link owns its socket and its pool of frames; file I/O
// runs in the LUN's own workers, so a slow LUN holds up nothing but itself. The wire format is AoEr11 plus the
// vendor command OPEN (docs/design.md). The gRPC API in front of it is package shelf.
package target
