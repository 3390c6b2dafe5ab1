package inband

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	// scanWait is how long a scan takes at most if nobody says.
	scanWait = time.Second
	// scanRounds is how often everybody is asked, scanPause how long between; who misses them all answers the next scan.
	scanRounds = 3
	scanPause  = 300 * time.Millisecond
	// scanRate is how many questions are asked a second, scanAtOnce how many wait for their answers.
	scanRate   = 4000
	scanAtOnce = 64
	// scanMost bounds what a flood of answers can make us remember.
	scanMost = 4096
)

// ScanConfig says whom to ask what.
type ScanConfig struct {
	// Wait is how long a scan takes at most; 0: 1 s. It ends before, when everybody who answered is known.
	Wait time.Duration
	// Addr is the target asked for, parts of it possibly wild; nil: everybody.
	Addr *aoe.Addr
	// Abilities: who answers is also asked for reservation and mask list.
	Abilities bool
	// Jitter keeps many hosts from asking at the same time: the first question waits a random part of it.
	Jitter time.Duration
}

// Discover makes a client for one scan.
func Discover(ctx context.Context, where Config, what ScanConfig) ([]Answer, error) {
	c, err := NewClient(where)
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	answers, err := c.Scan(ctx, what)
	return answers, errors.Join(err, c.Close())
}

// Scan asks who is there and has everybody who answers identify himself. One scan at a time; who listens hears nothing
// meanwhile.
func (c *Client) Scan(ctx context.Context, cfg ScanConfig) ([]Answer, error) {
	if cfg.Wait == 0 {
		cfg.Wait = scanWait
	}
	addr := aoe.Any
	if cfg.Addr != nil {
		addr = *cfg.Addr
	}
	if cfg.Jitter > 0 {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("discover: %w", context.Cause(ctx))
		case <-time.After(rand.N(cfg.Jitter)):
		}
	}
	asking, cancel := context.WithTimeout(ctx, cfg.Wait)
	defer cancel()
	s := &scan{client: c, cfg: cfg, addr: addr, found: map[Path]*Answer{}, pace: rate.NewLimiter(scanRate, scanAtOnce), slots: make(chan struct{}, scanAtOnce)}
	before := c.Listen(func(a Answer) { s.take(asking, a) })
	err := s.run(asking)
	c.Listen(before)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // the time is over: what is known by now is the answer
	}
	if err != nil {
		return nil, fmt.Errorf("discover: %w", err)
	}
	return s.answers(), nil
}

// scan is one Scan.
type scan struct {
	client *Client
	cfg    ScanConfig
	addr   aoe.Addr
	pace   *rate.Limiter
	slots  chan struct{} // one for each question under way

	mu     sync.Mutex // guards what follows
	ended  bool
	found  map[Path]*Answer
	asking sync.WaitGroup // Add under mu, never once ended
}

// run asks everybody, some times, and waits for those who answered.
func (s *scan) run(ctx context.Context) error {
	defer s.end()
	for range scanRounds {
		if err := s.client.broadcast(s.addr); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(scanPause):
		}
	}
	return nil
}

// end keeps late answers from asking anything, and waits for the questions under way, which end with their context.
func (s *scan) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.asking.Wait()
}

// take notes who answered, on the client's loop.
func (s *scan) take(ctx context.Context, a Answer) {
	if !s.addr.Matches(a.Addr) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.found[a.Path] != nil || len(s.found) >= scanMost {
		return
	}
	s.found[a.Path] = &a
	s.asking.Add(1)
	go func() {
		defer s.asking.Done()
		s.ask(ctx, a)
	}()
}

// ask has one target say the rest.
func (s *scan) ask(ctx context.Context, a Answer) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return
	}
	for _, question := range []func(context.Context, *Answer){s.client.identify, s.client.askReserve, s.client.askMask} {
		if s.pace.Wait(ctx) != nil {
			break
		}
		question(ctx, &a)
		if !s.cfg.Abilities {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found[a.Path] = &a
}

// identify leaves the answer as it is if IDENTIFY is not answered.
func (c *Client) identify(ctx context.Context, a *Answer) {
	if id, err := c.Identify(ctx, a.Path); err == nil {
		a.identify(id)
	}
}

func (c *Client) askReserve(ctx context.Context, a *Answer) {
	list, err := c.Reservation(ctx, a.Path)
	a.Reserved, a.Reserve = list, supported(ctx, err)
}

func (c *Client) askMask(ctx context.Context, a *Answer) {
	list, err := c.Masked(ctx, a.Path)
	a.Masked, a.Mask = list, supported(ctx, err)
}

// supported takes the outcome of a question that a target may not know.
func supported(ctx context.Context, err error) Support {
	switch {
	case err == nil:
		return Yes
	case ctx.Err() != nil:
		return Unknown
	}
	return No
}

// answers is everybody, in the order of addresses, then interfaces, then MACs.
func (s *scan) answers() []Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Answer, 0, len(s.found))
	for _, a := range s.found {
		all = append(all, *a)
	}
	slices.SortFunc(all, compare)
	return all
}
