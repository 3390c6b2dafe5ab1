package link

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
)

// Filter is a classic BPF program that decides in the kernel which frames a packet link receives.
type Filter []bpf.RawInstruction

// Offsets of AoE fields in a frame and their values, as package aoe has them; links know no more of AoE than this.
const (
	etherType = 0x88a2

	offEtherType = 12
	offVersion   = 14 // version in the high half, flags in the low one
	offShelf     = 16
	offCommand   = 19
	offTag       = 20
	headerLen    = 24

	flagResponse  = 0x08
	version       = 0x10
	versionMask   = 0xf0
	anyShelf      = 0xffff
	commandConfig = 1
	tagOwn        = 1 << 31
	tagShardShift = 28
	tagShardMask  = 7 << tagShardShift
)

// packetBroadcast is PACKET_BROADCAST; PACKET_HOST is 0, and types above are multicast, other hosts' and our own.
const packetBroadcast = 1

// vlanID is the part of a VLAN tag that names the VLAN; 0 is a frame with a priority only.
const vlanID = 0xfff

// keepAll is a snap length above every frame's.
const keepAll = 0x40000

// condition is one load, with a mask, whose value must be one of some.
type condition struct {
	load   bpf.Instruction
	mask   uint32 // 0: the whole value
	values []uint32
}

// FilterResponses lets through the answers to one shard's requests: those whose tag has the top bit and the shard's number.
func FilterResponses(shard uint8) Filter {
	return compile(
		condition{bpf.LoadAbsolute{Off: offVersion, Size: 1}, versionMask | flagResponse, []uint32{version | flagResponse}},
		condition{bpf.LoadAbsolute{Off: offTag, Size: 4}, tagOwn | tagShardMask, []uint32{tagOwn | uint32(shard)<<tagShardShift&tagShardMask}},
	)
}

// FilterConfig lets through config responses, asked for or not.
func FilterConfig() Filter {
	return compile(
		condition{bpf.LoadAbsolute{Off: offVersion, Size: 1}, versionMask | flagResponse, []uint32{version | flagResponse}},
		condition{bpf.LoadAbsolute{Off: offCommand, Size: 1}, 0, []uint32{commandConfig}},
	)
}

// FilterRequests lets through requests to a shelf, or to every shelf. The version is not looked at, since a target answers
// requests of another one with an error.
func FilterRequests(shelf uint16) Filter {
	return compile(
		condition{bpf.LoadAbsolute{Off: offVersion, Size: 1}, flagResponse, []uint32{0}},
		condition{bpf.LoadAbsolute{Off: offShelf, Size: 2}, 0, []uint32{uint32(shelf), anyShelf}},
	)
}

// on puts in front that the interface itself must have received the frame. Without it a socket also gets what the kernel
// has already handed up to a VLAN or macvlan interface on top: that VLAN's frames, their tag gone, and other stations'.
func (f Filter) on(ifindex int32) Filter {
	head, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(ifindex), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		panic("link: " + err.Error()) // the program depends on constants only
	}
	return append(head, f...)
}

// compile puts in front what holds for every link: long enough, AoE, to this host or to all, and of this interface's VLAN. (The
// kernel hands frames of unknown VLANs to sockets on the base interface, with the tag cut out.)
func compile(conditions ...condition) Filter {
	const drop = 0xff // patched to the distance to the end
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: headerLen, SkipTrue: drop},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: packetBroadcast, SkipTrue: drop},
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 2},
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: vlanID, SkipTrue: drop},
		bpf.LoadAbsolute{Off: offEtherType, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherType, SkipTrue: drop},
	}
	for _, c := range conditions {
		prog = append(prog, c.load)
		if c.mask != 0 {
			prog = append(prog, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask})
		}
		for i, v := range c.values[:len(c.values)-1] {
			prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(c.values) - 1 - i)})
		}
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c.values[len(c.values)-1], SkipTrue: drop})
	}
	prog = append(prog, bpf.RetConstant{Val: keepAll}, bpf.RetConstant{Val: 0})
	for i := range prog {
		if j, ok := prog[i].(bpf.JumpIf); ok && j.SkipTrue == drop {
			j.SkipTrue = uint8(len(prog) - 2 - i)
			prog[i] = j
		}
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		panic("link: " + err.Error()) // the program depends on constants only
	}
	return raw
}

// htons is a value in network byte order, as a sockaddr has it.
func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
