package aoe

// The tags of our initiator, `1 | shard:3 | epoch:6 | counter:22`. The standard leaves the 32 bits to the requester. The
// kernel's driver keeps the top bit 0 and drops answers that have it, so both can live on one host.
const (
	// TagOwn is set in every tag of ours.
	TagOwn uint32 = 1 << 31

	TagShardShift        = 28
	TagShardMask  uint32 = 7 << TagShardShift
	MaxShards            = 8

	tagEpochShift        = 22
	MaxEpoch      uint8  = 63
	TagCounters   uint32 = 1 << tagEpochShift // counters wrap here
)

// MakeTag packs a tag. Parts too large lose their high bits, which is how a counter wraps.
func MakeTag(shard, epoch uint8, counter uint32) uint32 {
	return TagOwn | uint32(shard&(MaxShards-1))<<TagShardShift | uint32(epoch&MaxEpoch)<<tagEpochShift | counter&(TagCounters-1)
}

// TagShard is the event loop that waits for the answer.
func TagShard(tag uint32) uint8 { return uint8(tag & TagShardMask >> TagShardShift) }

// TagEpoch is the session's epoch, 0 for none.
func TagEpoch(tag uint32) uint8 { return uint8(tag>>tagEpochShift) & MaxEpoch }

// TagCounter is the frame's number within the session, modulo TagCounters.
func TagCounter(tag uint32) uint32 { return tag & (TagCounters - 1) }

// IsSession says whether the frame belongs to a session of a managed volume: a tag of ours with an epoch.
func IsSession(tag uint32) bool { return tag&TagOwn != 0 && TagEpoch(tag) != 0 }
