package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
	"github.com/aoe-csi/aoe-csi/pkg/initiator"
)

const (
	// defaultMaxVolumes is what a node is dimensioned for.
	defaultMaxVolumes = 256
	// deviceDeadTime is how long the kernel keeps requests while no initiator runs, if the volume waits for ever.
	deviceDeadTime = 7 * 24 * time.Hour
	// minDeviceDeadTime: a volume's dead time is about its target; a restart of this process must never fail I/O.
	minDeviceDeadTime = time.Hour
)

// Config describes a Manager.
type Config struct {
	RunDir   string // records are in its subdirectory attachments
	StateDir string // who this initiator is; outlives a reboot
	// Shards serve the volumes; the manager takes and closes them.
	Shards     []*initiator.Shard
	Interfaces []string            // of the initiator, for what it tells of itself and for discovery
	Frontends  []blockdev.Frontend // in the order of preference
	PoolMax    int                 // frames per volume; 0: initiator.DefaultPoolMax
	MaxVolumes int                 // 0: 256

	host host // zero: this one
}

// Manager holds a node's attachments. Safe for concurrent use.
type Manager struct {
	cfg     Config
	id      *identity
	records records
	bootID  string
	locks   keyedLocks // by volume ID: held while an attachment comes, goes or is recovered

	sysfs string // "/sys/class/block"

	stop    context.CancelFunc
	stopped context.Context // ends with Close
	tasks   sync.WaitGroup  // recoveries
	givenUp givenUp

	mu          sync.Mutex // guards what follows
	attachments map[string]*attachment
	watchers    map[chan struct{}]struct{}
	closed      bool
}

// NewManager reads the records of an earlier process and goes on with its attachments in the background. Close ends it.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.MaxVolumes == 0 {
		cfg.MaxVolumes = defaultMaxVolumes
	}
	if cfg.host == (host{}) {
		cfg.host = thisHost
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	id, err := openIdentity(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, id: id, bootID: boot, sysfs: "/sys/class/block", records: recordsIn(cfg.RunDir),
		attachments: make(map[string]*attachment), watchers: make(map[chan struct{}]struct{}),
	}
	m.stopped, m.stop = context.WithCancel(context.Background())
	if err := os.MkdirAll(m.records.dir, 0o700); err != nil {
		m.stop()
		return nil, fmt.Errorf("records of attachments: %w", err)
	}
	found, bad, err := m.records.load()
	if err != nil {
		m.stop()
		return nil, err
	}
	for _, d := range bad {
		klog.ErrorS(d.err, "Record of an earlier initiator cannot be trusted; it and its device, if there is one, are left alone", "volume", d.volumeID)
	}
	for _, rec := range found {
		m.adopt(rec)
	}
	m.tasks.Go(m.reconcile)
	return m, nil
}

// Close stops serving and leaves every device in the kernel, where requests wait for the next initiator. Idempotent. It
// closes the shards.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.stop()
	m.tasks.Wait()

	var errs []error
	for _, shard := range m.cfg.Shards {
		errs = append(errs, shard.Close()) // nobody uses the queues' memory any more
	}
	for _, a := range m.all() {
		errs = append(errs, a.abandon())
	}
	m.notify()
	return errors.Join(errs...)
}

// Status describes the attachment; ErrNotAttached.
func (m *Manager) Status(volumeID string) (Status, error) {
	a := m.get(volumeID)
	if a == nil {
		return Status{}, fmt.Errorf("%s: %w", volumeID, ErrNotAttached)
	}
	return a.status(), nil
}

// List describes all attachments in the order of their targets.
func (m *Manager) List() []Status {
	all := m.all()
	list := make([]Status, 0, len(all))
	for _, a := range all {
		list = append(list, a.status())
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Options.Target.Shelf, b.Options.Target.Shelf),
			cmp.Compare(a.Options.Target.Slot, b.Options.Target.Slot), cmp.Compare(a.Options.VolumeID, b.Options.VolumeID))
	})
	return list
}

// Subscribe returns a channel that has something to receive after each change, until cancel is called.
func (m *Manager) Subscribe() (changes <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers[ch] = struct{}{}
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, ch)
	}
}

// notify tells the subscribers that something changed.
func (m *Manager) notify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ch := range m.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (m *Manager) get(volumeID string) *attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attachments[volumeID]
}

func (m *Manager) all() []*attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*attachment, 0, len(m.attachments))
	for _, a := range m.attachments {
		all = append(all, a)
	}
	return all
}

// put makes an attachment visible.
func (m *Manager) put(a *attachment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrStopping
	}
	if len(m.attachments) >= m.cfg.MaxVolumes {
		return fmt.Errorf("%w: %d", ErrTooMany, m.cfg.MaxVolumes)
	}
	m.attachments[a.opts.VolumeID] = a
	return nil
}

// drop forgets an attachment that is gone from the kernel.
func (m *Manager) drop(a *attachment) {
	m.mu.Lock()
	if m.attachments[a.opts.VolumeID] == a {
		delete(m.attachments, a.opts.VolumeID)
	}
	m.mu.Unlock()
	m.notify()
}

// shard returns the one with the fewest volumes.
func (m *Manager) shard() *initiator.Shard {
	volumes := make(map[*initiator.Shard]int)
	for _, a := range m.all() {
		if d := a.target(); d != nil {
			volumes[d.Shard()]++
		}
	}
	return slices.MinFunc(m.cfg.Shards, func(a, b *initiator.Shard) int { return volumes[a] - volumes[b] })
}
