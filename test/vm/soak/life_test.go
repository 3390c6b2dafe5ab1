//go:build vm

package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

const (
	firstBytes = 96 << 20  // of a new volume
	mostBytes  = 160 << 20 // that it grows to
	growBytes  = 16 << 20
	// The first 64 MiB are for loads, what follows up to stampTo for stamps.
	stampFrom = 64 << 20
	stampTo   = firstBytes
	block     = 4096
	// patience is far more than everything that goes wrong here takes together.
	patience = 3 * time.Minute
)

// life is a volume's: of one after the other at a slot.
type life struct {
	s      *soak
	slot   uint8
	random *rand.Rand

	id     volume.ID
	bytes  int64            // as large as the shelf made it
	stamps map[int64]uint64 // what was written to blocks and made durable
	device string
	front  string
}

// run lives until the deadline.
func (v *life) run() error {
	for time.Now().Before(v.s.deadline) {
		if err := v.round(); err != nil {
			return fmt.Errorf("e7.%d, %d bytes, %s as %s: %w", v.slot, v.bytes, v.front, v.device, err)
		}
	}
	return v.remove()
}

// round is one attachment.
func (v *life) round() error {
	if v.bytes == 0 {
		if err := v.make(); err != nil {
			return err
		}
	}
	if err := v.attach(); err != nil {
		return err
	}
	if err := v.check(); err != nil {
		return fmt.Errorf("after attaching: %w", err)
	}
	for range 1 + v.random.IntN(3) {
		acts := []func() error{v.load, v.load, v.filesystem, v.stamp, v.stamp, v.grow}
		if err := acts[v.random.IntN(len(acts))](); err != nil {
			return err
		}
	}
	if err := v.check(); err != nil {
		return fmt.Errorf("before detaching: %w", err)
	}
	if err := v.detach(); err != nil {
		return err
	}
	if v.random.IntN(6) == 0 {
		return v.remove()
	}
	return nil
}

// persist repeats a call that may have been made in vain, as the side-cars do.
func (v *life) persist(what string, f func(context.Context) error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := f(ctx)
		cancel()
		if err == nil || time.Now().After(deadline) {
			if err != nil {
				return fmt.Errorf("%s: not within %v: %w", what, patience, err)
			}
			return nil
		}
	}
}

// make makes a new volume, which has to be empty.
func (v *life) make() error {
	v.id = volume.ID{Addr: aoe.Addr{Shelf: 7, Slot: v.slot}, Generation: volume.NewGeneration()}
	v.stamps = map[int64]uint64{}
	err := v.persist("create", func(ctx context.Context) error {
		shelf, err := v.s.shelves.Get(ctx, 7, "")
		if err != nil {
			return err
		}
		if err := shelf.CreateLun(ctx, v.id, "soak", firstBytes); err != nil {
			return err
		}
		_, _, err = shelf.Admit(ctx, v.id, "a", []string{v.s.initiator.MAC})
		return err
	})
	v.bytes = firstBytes
	v.s.count("volumes made")
	return err
}

func (v *life) remove() error {
	if v.bytes == 0 {
		return nil
	}
	v.bytes = 0
	v.s.count("volumes deleted")
	// One after the other: a LUN whose deletion's answer was lost can be expelled from no more.
	for _, step := range []struct {
		what string
		call func(context.Context, *provision.Shelf) error
	}{
		{"expel", func(ctx context.Context, s *provision.Shelf) error { return s.Expel(ctx, v.id, "a") }},
		{"delete", func(ctx context.Context, s *provision.Shelf) error { return s.DeleteLun(ctx, v.id) }},
	} {
		err := v.persist(step.what, func(ctx context.Context) error {
			s, err := v.s.shelves.Get(ctx, 7, "")
			if err != nil {
				return err
			}
			return step.call(ctx, s)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *life) attach() error {
	frontends := lab.Frontends()
	v.front = frontends[v.random.IntN(len(frontends))]
	v.s.count("attached as " + v.front)
	return v.persist("attach", func(context.Context) error {
		return v.s.initiator.Call(time.Minute, func(ctx context.Context, c initiatorv1.InitiatorClient) error {
			a, err := c.Attach(ctx, &initiatorv1.AttachRequest{VolumeId: v.id.String(), Target: &initiatorv1.Target{Shelf: 7, Slot: uint32(v.slot)},
				Generation: string(v.id.Generation), Frontend: v.front})
			v.device = a.GetDevice()
			return err
		})
	})
}

func (v *life) detach() error {
	return v.persist("detach", func(context.Context) error {
		return v.s.initiator.Call(2*time.Minute, func(ctx context.Context, c initiatorv1.InitiatorClient) error {
			r, err := c.Detach(ctx, &initiatorv1.DetachRequest{VolumeId: v.id.String(), Timeout: durationpb.New(time.Minute)})
			if err == nil && r.GetGivenUp() != "" {
				return fmt.Errorf("I/O was given up: %s", r.GetGivenUp())
			}
			return err
		})
	})
}

// load is fio with checksums on the device.
func (v *life) load() error { return v.fio(v.device) }

func (v *life) fio(path string) error {
	d := time.Duration(2+v.random.IntN(8)) * time.Second
	out, err := v.s.lab.TryFor(d+patience, "fio", lab.FioVerify("soak", path, d)[1:]...)
	if err != nil {
		return fmt.Errorf("fio on %s: %w\n%s", path, err, out)
	}
	v.s.count("loads verified")
	return nil
}

// filesystem makes one on the first 64 MiB, uses it, and has it checked.
func (v *life) filesystem() error {
	dir := filepath.Join(v.s.lab.Dir(), fmt.Sprintf("mnt%d", v.slot))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	try := func(name string, args ...string) error {
		if out, err := v.s.lab.TryFor(patience, name, args...); err != nil {
			return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
		}
		return nil
	}
	// Not more: what follows has stamps.
	if err := try("mkfs.ext4", "-q", "-F", v.device, strconv.Itoa(stampFrom>>10)+"k"); err != nil {
		return err
	}
	if err := try("mount", v.device, dir); err != nil {
		return err
	}
	file := filepath.Join(dir, "file")
	loaded := func() error {
		if err := try("dd", "if=/dev/urandom", "of="+file, "bs=1M", "count=32", "conv=fsync", "status=none"); err != nil {
			return err
		}
		sum, err := v.s.lab.TryFor(patience, "sha256sum", file)
		if err != nil {
			return err
		}
		if err := try("sh", "-c", "echo 1 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		again, err := v.s.lab.TryFor(patience, "sha256sum", file)
		if err == nil && again != sum {
			err = fmt.Errorf("a file read back is %q, written was %q", again, sum)
		}
		return err
	}()
	if err := try("umount", dir); err != nil {
		return err
	}
	if loaded != nil {
		return loaded
	}
	v.s.count("file systems used")
	return try("e2fsck", "-fn", v.device)
}

// direct opens the device past the page cache, with a buffer for it.
func (v *life) direct(flag int, use func(f *os.File, buf []byte) error) error {
	f, err := os.OpenFile(v.device, flag|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := aligned()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	return use(f, buf)
}

// stamp writes blocks of which is known what is in them, and makes them durable.
func (v *life) stamp() error {
	written := map[int64]uint64{}
	err := v.direct(os.O_WRONLY, func(f *os.File, buf []byte) error {
		for range 8 + v.random.IntN(56) {
			at := stampFrom + v.random.Int64N((stampTo-stampFrom)/block)*block
			seed := v.random.Uint64() | 1
			fill(buf, seed)
			if _, err := f.WriteAt(buf, at); err != nil {
				return err
			}
			written[at] = seed
		}
		return f.Sync()
	})
	if err != nil {
		return err
	}
	for at, seed := range written {
		v.stamps[at] = seed
	}
	v.s.count("stamps made durable")
	return nil
}

// check reads all stamps, and some blocks that never had one.
func (v *life) check() error {
	want := make([]byte, block)
	err := v.direct(os.O_RDONLY, func(f *os.File, buf []byte) error {
		look := func(at int64) error {
			if _, err := f.ReadAt(buf, at); err != nil {
				return err
			}
			fill(want, v.stamps[at])
			if !bytes.Equal(buf, want) {
				return fmt.Errorf("the block at %d begins with %x, not with %x", at, buf[:16], want[:16])
			}
			return nil
		}
		for at := range v.stamps {
			if err := look(at); err != nil {
				return err
			}
		}
		for range 16 {
			if err := look(stampFrom + v.random.Int64N((stampTo-stampFrom)/block)*block); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	v.s.count("contents checked")
	return nil
}

// grow makes the volume larger, and its device, where the kernel can do that to one that is in use.
func (v *life) grow() error {
	if v.bytes+growBytes > mostBytes {
		return nil
	}
	want := v.bytes + growBytes
	err := v.persist("grow", func(ctx context.Context) error {
		shelf, err := v.s.shelves.Get(ctx, 7, "")
		if err != nil {
			return err
		}
		_, err = shelf.GrowLun(ctx, v.id, want)
		return err
	})
	if err != nil {
		return err
	}
	v.bytes = want
	later := false
	err = v.persist("resize", func(context.Context) error {
		err := v.s.initiator.Call(time.Minute, func(ctx context.Context, c initiatorv1.InitiatorClient) error {
			_, err := c.Resize(ctx, &initiatorv1.ResizeRequest{VolumeId: v.id.String(), WantedBytes: uint64(want)})
			return err
		})
		if status.Code(err) == codes.FailedPrecondition && v.front == "ublk" {
			later, err = true, nil // with the next attachment
		}
		return err
	})
	if err != nil || later {
		v.s.count("grown, to be seen at the next attachment")
		return err
	}
	text, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(v.device), "size"))
	if err != nil {
		return err
	}
	if sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil || sectors*512 != want {
		return fmt.Errorf("grown to %d bytes, the device has %d sectors", want, sectors)
	}
	v.s.count("grown in use")
	return nil
}

// aligned is memory for direct I/O.
func aligned() ([]byte, error) {
	return unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// fill makes a block of a seed; 0 is zeroes.
func fill(b []byte, seed uint64) {
	clear(b)
	if seed == 0 {
		return
	}
	r := rand.New(rand.NewPCG(seed, seed))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
}
