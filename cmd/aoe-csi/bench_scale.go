package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/internal/bench"
	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

// benchTargets turns "e7.0-254" into 255 targets; anything else names one.
func benchTargets(args []string) ([]string, error) {
	var all []string
	for _, arg := range args {
		first, last, isRange := strings.Cut(arg, "-")
		from, err := aoe.ParseAddr(first)
		to, lastErr := strconv.ParseUint(last, 10, 8)
		if !isRange || err != nil || lastErr != nil { // a handle has a hyphen, too
			all = append(all, arg)
			continue
		}
		if int(to) < int(from.Slot) {
			return nil, fmt.Errorf("targets %s: the last slot is before the first", arg)
		}
		for slot := int(from.Slot); slot <= int(to); slot++ {
			all = append(all, aoe.Addr{Shelf: from.Shelf, Slot: uint8(slot)}.String())
		}
	}
	return all, nil
}

// attachAll attaches one target after the other and says how long each took, shortest first.
func (o *benchOptions) attachAll(ctx context.Context, shards []*initiator.Shard, args []string) (devices []*initiator.Device, took []time.Duration, err error) {
	var uuid aoe.UUID
	rand.Read(uuid[:]) // never fails
	for i, arg := range args {
		target, generation, err := volumeArg(arg)
		if err != nil {
			return devices, nil, err
		}
		attaching, cancel := context.WithTimeout(ctx, o.timeout)
		begin := time.Now()
		dev, err := shards[i%len(shards)].Attach(attaching, initiator.DeviceConfig{
			Addr:       aoe.Addr{Shelf: uint16(target.GetShelf()), Slot: uint8(target.GetSlot())},
			Generation: generation, UUID: uuid, Incarnation: uint64(time.Now().UnixNano()), PoolMax: o.poolMax,
		})
		cancel()
		if err != nil {
			return devices, nil, err
		}
		took = append(took, time.Since(begin))
		devices = append(devices, dev)
	}
	slices.Sort(took)
	return devices, took, nil
}

// detachAll lets go of them at once: each waits for its target.
func detachAll(ctx context.Context, devices []*initiator.Device) error {
	errs := make(chan error, len(devices))
	for _, dev := range devices {
		go func() { errs <- dev.Detach(context.WithoutCancel(ctx), false) }()
	}
	var err error
	for range devices {
		err = errors.Join(err, <-errs)
	}
	return err
}

// scale is what the attached devices cost while nothing is done with them, for as long as asked.
func (o *benchOptions) scale(ctx context.Context, empty float64, took []time.Duration) (*bench.Scale, error) {
	full, err := residentMiB()
	if err != nil {
		return nil, err
	}
	s := &bench.Scale{
		Volumes: len(took), InitiatorEmpty: empty, Initiator: full,
		AttachP50: milliseconds(took[len(took)/2]), AttachP99: milliseconds(took[len(took)*99/100]),
	}
	cpu, begin := bench.OwnCPU(), time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(o.idle):
	}
	s.IdleFrom, s.IdleTo = begin, time.Now()
	s.IdleInitiator = float64(bench.OwnCPU()-cpu) / float64(time.Since(begin))
	return s, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// residentMiB is this process's memory.
func residentMiB() (float64, error) { return bench.ResidentMiB(os.Getpid()) }
