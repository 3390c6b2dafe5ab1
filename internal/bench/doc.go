// Package bench measures block I/O over AoE: a target through the initiator without a block layer (Drive), the wire alone
// (Ask, Answer), and what comes of comparing them (Report). Nothing of the driver depends on it but `aoe-csi bench`.
package bench
