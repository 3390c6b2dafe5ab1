// Package inband speaks AoE to targets one command at a time: to find out who is on the wire, and to manage targets that have
// no other interface. It is not for data that anybody waits for; package initiator is.
package inband
