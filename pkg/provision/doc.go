// Package provision turns requests for volumes into LUNs on shelves. The intent is
// written to a volume.Store before a shelf is asked, so that every call can be cut off
// anywhere and repeated. It never touches a frame: shelves are reached through their
// gRPC API only.
package provision
