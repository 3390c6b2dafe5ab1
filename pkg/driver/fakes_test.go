package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

const (
	testNode     = "node-a"
	testSegment  = "lab"
	testCapacity = 100 << 30
)

// memoryVolumes keeps volumes in memory, as strict as the real thing.
type memoryVolumes struct {
	mu        sync.Mutex
	volumes   map[string]*volume.Volume // by name
	published map[string]volume.Publication
	nodes     []string
	fail      error // what every call answers, if set
	last      volume.CreateRequest
	lastCap   volume.CapacityRequest
}

func newMemoryVolumes() *memoryVolumes {
	return &memoryVolumes{volumes: map[string]*volume.Volume{}, published: map[string]volume.Publication{}, nodes: []string{testNode, "node-b"}}
}

func (m *memoryVolumes) find(id string) *volume.Volume {
	for _, v := range m.volumes {
		if v.ID.String() == id {
			return v
		}
	}
	return nil
}

func (m *memoryVolumes) Create(_ context.Context, r volume.CreateRequest) (*volume.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = r
	if m.fail != nil {
		return nil, m.fail
	}
	size, err := r.Size()
	if err != nil {
		return nil, err
	}
	if v := m.volumes[r.Name]; v != nil {
		if v.SizeBytes != size || !v.Parameters.Equal(r.Parameters) {
			return nil, fmt.Errorf("%w: volume %s", volume.ErrConflict, r.Name)
		}
		return v, nil
	}
	if size > testCapacity {
		return nil, fmt.Errorf("%w: %d bytes", volume.ErrOutOfRange, size)
	}
	v := &volume.Volume{
		ID:        volume.ID{Addr: aoe.Addr{Shelf: 7, Slot: uint8(len(m.volumes))}, Generation: volume.NewGeneration()},
		Name:      r.Name,
		SizeBytes: size, Parameters: r.Parameters, Segment: testSegment,
	}
	m.volumes[r.Name] = v
	return v, nil
}

func (m *memoryVolumes) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(id)
	switch {
	case m.fail != nil:
		return m.fail
	case v == nil:
		return nil
	case len(v.Nodes) > 0:
		return fmt.Errorf("%w: volume %s by %s", volume.ErrInUse, id, v.Nodes[0])
	}
	delete(m.volumes, v.Name)
	return nil
}

func (m *memoryVolumes) Get(_ context.Context, id string) (*volume.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.find(id); v != nil {
		return v, m.fail
	}
	return nil, fmt.Errorf("%w: volume %s", volume.ErrNotFound, id)
}

func (m *memoryVolumes) Expand(_ context.Context, id string, required, limit int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(id)
	switch {
	case m.fail != nil:
		return 0, m.fail
	case v == nil:
		return 0, fmt.Errorf("%w: volume %s", volume.ErrNotFound, id)
	}
	size, err := volume.ExpandSize(v.SizeBytes, required, limit)
	if err != nil {
		return 0, err
	}
	if size > testCapacity {
		return 0, fmt.Errorf("%w: %d bytes", volume.ErrOutOfRange, size)
	}
	v.SizeBytes = size
	return size, nil
}

func (m *memoryVolumes) List(_ context.Context, token string, most int) ([]volume.Volume, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []volume.Volume
	for _, v := range m.volumes {
		all = append(all, *v)
	}
	slices.SortFunc(all, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	if token != "" {
		after, ok := strings.CutPrefix(token, "after:")
		if !ok {
			return nil, "", fmt.Errorf("%w: %q", volume.ErrBadToken, token)
		}
		all = slices.DeleteFunc(all, func(v volume.Volume) bool { return v.Name <= after })
	}
	if most > 0 && len(all) > most {
		return all[:most], "after:" + all[most-1].Name, nil
	}
	return all, "", nil
}

func (m *memoryVolumes) Capacity(_ context.Context, r volume.CapacityRequest) (volume.Capacity, error) {
	m.lastCap = r
	return volume.Capacity{AvailableBytes: testCapacity, MaxVolumeBytes: testCapacity / 2}, m.fail
}

func (m *memoryVolumes) Publish(_ context.Context, id, node string, readOnly bool) (*volume.Publication, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(id)
	switch {
	case m.fail != nil:
		return nil, m.fail
	case v == nil:
		return nil, fmt.Errorf("%w: volume %s", volume.ErrNotFound, id)
	case !slices.Contains(m.nodes, node):
		return nil, fmt.Errorf("%w: node %s", volume.ErrNotFound, node)
	case len(v.Nodes) > 0 && v.Nodes[0] != node:
		return nil, fmt.Errorf("%w: volume %s by %s", volume.ErrInUse, id, v.Nodes[0])
	case len(v.Nodes) > 0 && m.published[id].ReadOnly != readOnly:
		return nil, fmt.Errorf("%w: publication of %s", volume.ErrConflict, id)
	}
	v.Nodes = []string{node}
	m.published[id] = volume.Publication{
		Target: v.ID.Addr, Generation: v.ID.Generation, Frontend: v.Parameters.Frontend,
		DeadTime: v.Parameters.DeadTime, ReadOnly: readOnly, MACs: []string{"02:00:00:00:00:07", "02:00:00:00:00:08"},
	}
	p := m.published[id]
	return &p, nil
}

func (m *memoryVolumes) Unpublish(_ context.Context, id, node string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(id)
	if m.fail != nil || v == nil {
		return m.fail
	}
	v.Nodes = slices.DeleteFunc(v.Nodes, func(n string) bool { return node == "" || n == node })
	return nil
}

// memoryAttacher hands out devices that do not exist.
type memoryAttacher struct {
	mu       sync.Mutex
	attached map[string]*volume.Attachment
	next     int
	fail     error
	busy     bool // Detach needs force
	detached []string
	sizes    []int64 // wanted of each Resize
}

// stall makes all devices wait for their targets.
func (a *memoryAttacher) stall() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, attachment := range a.attached {
		attachment.State = "stalled"
	}
	a.busy = true
}

func (a *memoryAttacher) Attach(_ context.Context, id string, _ volume.Publication) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return "", a.fail
	}
	if a.attached == nil {
		a.attached = map[string]*volume.Attachment{}
	}
	if a.attached[id] == nil {
		a.attached[id] = &volume.Attachment{
			VolumeID: id, Device: fmt.Sprintf("/dev/nbd%d", a.next), Frontend: "nbd",
			Paths: []volume.Path{{Interface: "eth1"}, {Interface: "eth1"}, {Interface: "eth2"}},
		}
		a.next++
	}
	return a.attached[id].Device, nil
}

func (a *memoryAttacher) Resize(_ context.Context, id string, wanted int64) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return 0, a.fail
	}
	if a.attached[id] == nil {
		return 0, status.Error(codes.NotFound, "not attached")
	}
	a.sizes = append(a.sizes, wanted)
	return max(wanted, 1<<30), nil
}

func (a *memoryAttacher) Detach(_ context.Context, id string, force bool) (lost string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy && !force && a.attached[id] != nil {
		return "", status.Error(codes.FailedPrecondition, "mounted")
	}
	if a.fail == nil {
		if force && a.attached[id] != nil {
			lost = "I/O was failed"
		}
		delete(a.attached, id)
		a.detached = append(a.detached, id)
	}
	return lost, a.fail
}

func (a *memoryAttacher) Device(_ context.Context, id string) (*volume.Attachment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.attached[id] == nil {
		return nil, fmt.Errorf("%w: %s is not attached", volume.ErrNotFound, id)
	}
	found := *a.attached[id]
	return &found, nil
}

// memoryMounter makes the directories and files of mounts, but mounts nothing.
type memoryMounter struct {
	mu      sync.Mutex
	mounts  map[string]uint64 // path → device
	formats [][]string        // device, type and options of each FormatAndMount
	grown   []string          // device and path of each Grow
	ro      map[string]bool
	fail    error
}

// refusal is an error like those of package mount.
type refusal struct{ error }

func (refusal) Refused() bool { return true }

func (m *memoryMounter) set(path string, device uint64) {
	if m.mounts == nil {
		m.mounts, m.ro = map[string]uint64{}, map[string]bool{}
	}
	m.mounts[path] = device
}

func (m *memoryMounter) FormatAndMount(device, target, fsType string, mkfsOptions, mountOptions []string) error {
	number, err := m.DeviceNumber(device)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err = errors.Join(err, m.fail); err != nil {
		return err
	}
	m.formats = append(m.formats, append(append([]string{device, fsType}, mkfsOptions...), mountOptions...))
	m.set(target, number)
	return os.MkdirAll(target, 0o750)
}

func (m *memoryMounter) Grow(device, path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounts[path] == 0 {
		return fmt.Errorf("nothing is mounted at %s", path)
	}
	m.grown = append(m.grown, device+" "+path)
	return m.fail
}

func (m *memoryMounter) Bind(source, target string, readOnly bool) error {
	number, err := m.DeviceNumber(source)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		err = os.WriteFile(target, nil, 0o600)
	} else {
		number, err = m.mounts[source], os.MkdirAll(target, 0o750)
	}
	if m.mounts[target] != 0 && m.mounts[target] != number {
		return refusal{errors.New("shows another device")}
	}
	m.set(target, number)
	m.ro[target] = readOnly
	return errors.Join(err, m.fail)
}

func (m *memoryMounter) Unmount(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		delete(m.mounts, path)
	}
	return m.fail
}

func (m *memoryMounter) Remove(path string) error {
	err := m.Unmount(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (m *memoryMounter) Source(path string) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mounts[filepath.Clean(path)], nil
}

func (m *memoryMounter) References(device uint64) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var paths []string
	for path, number := range m.mounts {
		if number == device {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

func (*memoryMounter) DeviceNumber(path string) (uint64, error) {
	var number uint64
	if _, err := fmt.Sscanf(path, "/dev/nbd%d", &number); err != nil {
		return 0, fmt.Errorf("%s is no device", path)
	}
	return 43<<8 + number, nil
}

func (*memoryMounter) Usage(string) (bytes, inodes [3]int64, err error) {
	return [3]int64{100, 40, 60}, [3]int64{10, 4, 6}, nil
}

func (*memoryMounter) DeviceSize(string) (int64, error) { return 1 << 30, nil }

// memoryRecorder keeps the events.
type memoryRecorder struct {
	mu     sync.Mutex
	events []string
}

func (r *memoryRecorder) PodEvent(pod Pod, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s/%s %s: %s", pod.Namespace, pod.Name, reason, message))
}

func (r *memoryRecorder) VolumeLoss(id, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %s: %s", id, reason, message))
}
