package attach

import (
	"fmt"
	"sync"
)

// mostGivenUp bounds what is remembered; a node that gave up more volumes than it can have does not need each of them.
const mostGivenUp = 2 * defaultMaxVolumes

// givenUp remembers, by volume, what its last detach gave up, until the volume is attached again: the answer to the call that
// did it may have been lost, and whoever repeats the call has to hear it.
type givenUp struct {
	mu   sync.Mutex
	what map[string]string
}

func (g *givenUp) set(volumeID, what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.what == nil {
		g.what = make(map[string]string)
	}
	for other := range g.what {
		if len(g.what) < mostGivenUp {
			break
		}
		delete(g.what, other)
	}
	g.what[volumeID] = what
}

func (g *givenUp) forget(volumeID string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.what, volumeID)
}

// GivenUp says what was lost when the volume was detached last: I/O that failed because its target did not take it. Empty: nothing
// was, or the volume was attached again.
func (m *Manager) GivenUp(volumeID string) string {
	m.givenUp.mu.Lock()
	defer m.givenUp.mu.Unlock()
	return m.givenUp.what[volumeID]
}

// noteGivenUp remembers what a forced end of the attachment is about to fail, if anything is out.
func (a *attachment) noteGivenUp(why string) {
	disk, dev := a.device(), a.target()
	if disk == nil || dev == nil {
		return
	}
	outstanding := dev.Stats().Outstanding
	if idle, err := disk.Idle(); err == nil && idle && outstanding == 0 {
		return
	}
	a.m.givenUp.set(a.opts.VolumeID, fmt.Sprintf("%s: I/O that %s had not answered was failed (%d requests, and what the kernel still held), so writes since the last "+
		"successful flush may be lost", why, a.opts.Target, outstanding))
}
