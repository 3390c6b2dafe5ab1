package driver

import (
	"fmt"
	"sync"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// volumeLocks lets one call at a time work on a volume. A second one is told to come back:
// the caller repeats anyway, and a queue behind a hanging mount would only grow.
type volumeLocks struct {
	mu   sync.Mutex
	held map[string]string // volume → operation
}

// lock takes the volume for an operation, or fails with volume.ErrPending naming the one that has it.
func (l *volumeLocks) lock(id, operation string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if holder, ok := l.held[id]; ok {
		return nil, fmt.Errorf("%s volume %s: %w: %s", operation, id, volume.ErrPending, holder)
	}
	if l.held == nil {
		l.held = map[string]string{}
	}
	l.held[id] = operation
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, id)
	}, nil
}

// holder returns the operation that has the volume, "" if none has.
func (l *volumeLocks) holder(id string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[id]
}
