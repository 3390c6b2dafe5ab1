package shelf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/inband"
)

const (
	// lookSectors is how much is looked at at either end of a LUN: a MiB.
	lookSectors = 1 << 20 / aoe.SectorSize
	// markSectors is after how much overwriting the config string says how far it is: 64 MiB.
	markSectors = 64 << 20 / aoe.SectorSize
	// framesMost is how many frames are under way at once.
	framesMost = 8
)

// signatures name what people may have on a disk. Any other byte that is not zero keeps a LUN from being taken, too.
var signatures = []struct {
	at   int
	text string
	name string
}{
	{1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
	{0, "XFSB", "an XFS file system"},
	{65536 + 64, "_BHRfS_M", "a btrfs file system"},
	{512, "LABELONE", "an LVM physical volume"},
	{512, "EFI PART", "a GPT partition table"},
	{4096 - 10, "SWAPSPACE2", "swap space"},
	{0, "LUKS", "a LUKS volume"},
	{510, "\x55\xaa", "a partition table or boot sector"},
}

// lookForData says what is in the first or last MiB; empty: zeroes only.
func (p *Proxy) lookForData(ctx context.Context, a inband.Answer) (string, error) {
	n := min(a.Sectors, lookSectors)
	first, err := p.read(ctx, a, 0, n)
	if err != nil {
		return "", err
	}
	if len(bytes.Trim(first, "\x00")) > 0 {
		for _, sig := range signatures {
			if sig.at < len(first) && bytes.HasPrefix(first[sig.at:], []byte(sig.text)) {
				return "it has " + sig.name, nil
			}
		}
		return "its first MiB has data", nil
	}
	last, err := p.read(ctx, a, a.Sectors-n, n)
	if err == nil && len(bytes.Trim(last, "\x00")) > 0 {
		return "its last MiB has data", nil
	}
	return "", err
}

// each calls f for the parts of a range that fit in a frame, some at once.
func (p *Proxy) each(whole context.Context, a inband.Answer, lba, sectors uint64, f func(ctx context.Context, lba uint64, n int) error) error {
	group, ctx := errgroup.WithContext(whole)
	group.SetLimit(max(1, min(framesMost, a.BufferCount/2)))
	step := uint64(p.cfg.Client.MaxSectors(a))
	for at := lba; at < lba+sectors && ctx.Err() == nil; at += step {
		n := int(min(step, lba+sectors-at))
		group.Go(func() error { return f(ctx, at, n) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(whole) // then parts are missing
}

func (p *Proxy) read(ctx context.Context, a inband.Answer, lba, sectors uint64) ([]byte, error) {
	data := make([]byte, sectors*aoe.SectorSize)
	err := p.each(ctx, a, lba, sectors, func(ctx context.Context, at uint64, n int) error {
		b, err := p.cfg.Client.Read(ctx, a.Path, at, n)
		copy(data[(at-lba)*aoe.SectorSize:], b)
		return err
	})
	return data, err
}

// job overwrites a LUN in the background.
type job struct {
	generation string
	what       string // "scrubbing"
	sectors    uint64
	at         atomic.Uint64
	cancel     context.CancelFunc
	done       chan struct{}
	err        error // before done is closed
}

var errNotOurs = errors.New("the claim is gone")

// overwrite has the whole LUN zeroed: it begins the job, or looks how far it is. ABORTED until it is done; a job that failed is begun
// again by the next call.
func (p *Proxy) overwrite(s *slot, a inband.Answer, claim aoe.Claim, what string) error {
	s.mu.Lock()
	j := s.job
	if j != nil && (j.generation != claim.Generation || j.what != what) {
		s.mu.Unlock()
		p.endJob(s)
		s.mu.Lock()
		j = nil
	}
	if j == nil {
		j = &job{generation: claim.Generation, what: what, sectors: a.Sectors, done: make(chan struct{})}
		var ctx context.Context
		ctx, j.cancel = context.WithCancel(p.ctx)
		s.job = j
		p.jobs.Add(1)
		go func() {
			defer p.jobs.Done()
			j.err = p.zero(ctx, j, a, claim)
			close(j.done)
		}()
	}
	s.mu.Unlock()
	patience := time.NewTimer(2 * time.Second) // short ones are done within the call
	defer patience.Stop()
	select {
	case <-j.done:
	case <-patience.C:
		return status.Errorf(codes.Aborted, "%s: %s, %d %% done", s.addr, what, 100*j.at.Load()/max(1, j.sectors))
	}
	s.mu.Lock()
	s.job, s.jobEnded = nil, time.Now()
	s.mu.Unlock()
	if j.err != nil {
		klog.ErrorS(j.err, "LUN could not be overwritten and stays claimed", "lun", s.addr.String(), "for", what)
		return status.Errorf(codes.Unavailable, "%s: %s failed at %d %%: %v", s.addr, what, 100*j.at.Load()/max(1, j.sectors), j.err)
	}
	return nil
}

// endJob stops a job and waits for it.
func (p *Proxy) endJob(s *slot) {
	s.mu.Lock()
	j := s.job
	s.job = nil
	s.mu.Unlock()
	if j == nil {
		return
	}
	j.cancel()
	<-j.done
	s.mu.Lock()
	s.jobEnded = time.Now()
	s.mu.Unlock()
}

// awaitQuiet waits until what jobs have sent to a LUN can no longer arrive, nor wait in the target: it must not be executed when the LUN is
// another volume's.
func (p *Proxy) awaitQuiet(ctx context.Context, s *slot, a inband.Answer) error {
	s.mu.Lock()
	wait := time.Until(s.jobEnded.Add(max(p.cfg.DuplicateLifetime, inband.QuirksOf(a).Drain)))
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-time.After(wait):
		return nil
	}
}

// zero is the job. The config string says how far it is, so that it can be gone on with.
func (p *Proxy) zero(ctx context.Context, j *job, a inband.Answer, claim aoe.Claim) error {
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err != nil {
		return err
	}
	was, err := aoe.ParseClaim(now.ConfigString)
	if err != nil || was.Generation != claim.Generation {
		return errNotOurs
	}
	zeroes := make([]byte, aoe.MaxATASectors*aoe.SectorSize)
	for at := min(was.Scrubbed, j.sectors); at < j.sectors; {
		j.at.Store(at)
		n := min(markSectors, j.sectors-at)
		err := p.each(ctx, a, at, n, func(ctx context.Context, lba uint64, n int) error {
			return p.cfg.Client.Write(ctx, a.Path, lba, zeroes[:n*aoe.SectorSize])
		})
		if err != nil {
			return err
		}
		at += n
		if err := p.mark(ctx, a, claim, at); err != nil {
			return err
		}
	}
	j.at.Store(j.sectors)
	if !inband.QuirksOf(a).FlushLies {
		if err := p.cfg.Client.Flush(ctx, a.Path); err != nil && !errors.Is(err, inband.ErrFailed) {
			return fmt.Errorf("flush: %w", err)
		}
	}
	return nil
}

// outlives says whether what was written stays when the target's host loses power, or else a mark in the config string goes with it.
func (p *Proxy) outlives(ctx context.Context, a inband.Answer) bool {
	if kind := inband.QuirksOf(a); kind.FlushLies {
		return p.cfg.Synchronous || kind.Forgets
	}
	return a.FlushClaimed && p.cfg.Client.Flush(ctx, a.Path) == nil
}

// mark says in the config string how far it is, if that is durable: a job that is cut off goes on from there. It fails if the claim was lost
// meanwhile: then others could have written, too.
func (p *Proxy) mark(ctx context.Context, a inband.Answer, claim aoe.Claim, at uint64) error {
	durable := p.outlives(ctx, a)
	now, err := p.cfg.Client.Config(ctx, a.Path)
	if err != nil {
		return err
	}
	if !isClaim(now.ConfigString, claim.Generation) {
		return errNotOurs
	}
	if !durable {
		return nil
	}
	claim.Scrubbed = at
	return p.cfg.Client.ForceConfig(ctx, a.Path, claim.String())
}
