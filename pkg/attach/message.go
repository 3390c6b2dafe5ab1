package attach

import (
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

func targetMessage(a aoe.Addr) *initiatorv1.Target {
	return &initiatorv1.Target{Shelf: uint32(a.Shelf), Slot: uint32(a.Slot)}
}

func attachmentMessage(s Status) *initiatorv1.Attachment {
	m := &initiatorv1.Attachment{
		VolumeId: s.Options.VolumeID, Target: targetMessage(s.Options.Target), Generation: s.Options.Generation,
		Device: s.Device, Frontend: s.Frontend, FrontendReason: s.FrontendReason,
		SizeBytes: s.SizeBytes, ReadOnly: s.Options.ReadOnly,
		Model: s.Info.Model, Serial: s.Info.Serial, Flush: s.Info.Flush, Session: s.Info.Session,
		State: s.State, Message: s.Message, Since: timestamppb.New(s.Since),
		Statistics: statisticsMessage(s.Stats), DeadTime: durationpb.New(s.Options.DeadTime),
	}
	for _, p := range s.Paths {
		m.Paths = append(m.Paths, &initiatorv1.Path{
			Interface: p.Interface, RemoteMac: p.MAC.String(), State: p.State.String(), MaxSectors: uint32(p.MaxSectors),
			Window: uint32(p.Window), Rtt: durationpb.New(p.RTT), Message: p.Message,
		})
	}
	return m
}

func statisticsMessage(s initiator.Stats) *initiatorv1.Statistics {
	return &initiatorv1.Statistics{
		Reads: s.Reads, Writes: s.Writes, Flushes: s.Flushes, Trims: s.Trims,
		ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes, Errors: s.Errors,
		Retransmits: s.Retransmits, FramesSent: s.FramesSent, FramesReceived: s.FramesReceived,
		Outstanding: uint32(s.Outstanding), PoolFrames: uint32(s.PoolFrames), PoolCeiling: uint32(s.PoolCeiling),
		PoolGrown: s.PoolGrown, PoolWaits: s.PoolWaits, PoolCeilingHits: s.PoolCapped,
	}
}

func foundMessage(a inband.Answer, conflict string) *initiatorv1.Discovered {
	return &initiatorv1.Discovered{
		Target: targetMessage(a.Addr), Interface: a.Interface, Mac: a.MAC.String(),
		BufferCount: uint32(a.BufferCount), SectorCount: uint32(a.SectorCount), Firmware: uint32(a.Firmware),
		Config: []byte(a.ConfigString), SizeBytes: a.Sectors * sectorBytes, Model: a.Model, Serial: a.Serial,
		Revision: a.Revision, Lba48: a.LBA48, Flush: a.FlushClaimed && !inband.QuirksOf(a).FlushLies, Trim: a.Trim, TrimZeroes: a.TrimZeroes,
		Reserve: supportMessage(a.Reserve), Reserved: macTexts(a.Reserved), Mask: supportMessage(a.Mask), Masked: macTexts(a.Masked),
		Conflict: conflict,
	}
}

func supportMessage(s inband.Support) initiatorv1.Support {
	switch s {
	case inband.Yes:
		return initiatorv1.Support_SUPPORT_YES
	case inband.No:
		return initiatorv1.Support_SUPPORT_NO
	}
	return initiatorv1.Support_SUPPORT_UNSPECIFIED
}

func macTexts(macs []aoe.MAC) []string {
	var texts []string
	for _, m := range macs {
		texts = append(texts, m.String())
	}
	return texts
}
