package linktest

import "time"

// never is how long the clock's goroutine sleeps when nothing is due.
const never = time.Hour

// Advance moves the virtual clock, at most forwards, delivers what is due and lets go of what has been held long enough. It
// releases frames of all links, so it belongs to the one goroutine that drives them.
func (n *Network) Advance(now time.Time) {
	n.mu.Lock()
	if n.real {
		n.mu.Unlock()
		panic("linktest: Advance of a started network")
	}
	if now.After(n.now) {
		n.now = now
	}
	now = n.now
	n.deliver(now)
	links := n.links
	n.mu.Unlock()
	for _, l := range links {
		l.release(now)
	}
}

// Next is when something is due: an arrival, or the release of a frame. False: nothing is.
func (n *Network) Next() (time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.next()
}

func (n *Network) next() (at time.Time, ok bool) {
	if len(n.flights) > 0 {
		at, ok = n.flights[0].at, true
	}
	for _, l := range n.links {
		if len(l.held) > 0 && (!ok || l.held[0].until.Before(at)) {
			at, ok = l.held[0].until, true
		}
	}
	return at, ok
}

// Start makes the real clock the network's and delivers from a goroutine, which the returned function stops and waits for.
// Call it before anything is sent. Frames are released by the thread that owns their link, in its Send and Receive.
func (n *Network) Start() (stop func()) {
	n.mu.Lock()
	n.real = true
	n.mu.Unlock()
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n.run(quit)
	}()
	return func() {
		close(quit)
		<-done
	}
}

// run is the goroutine of Start, ended by quit.
func (n *Network) run(quit <-chan struct{}) {
	timer := time.NewTimer(never)
	defer timer.Stop()
	for {
		timer.Reset(n.tick())
		select {
		case <-quit:
			return
		case <-n.kick:
		case <-timer.C:
		}
	}
}

// tick delivers, tells links of frames to let go, and says how long nothing will be due. A release that was told is not
// waited for again.
func (n *Network) tick() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.deliver(now)
	wait := never
	if len(n.flights) > 0 {
		wait = n.flights[0].at.Sub(now)
	}
	for _, l := range n.links {
		if len(l.held) == 0 {
			continue
		}
		if left := l.held[0].until.Sub(now); left > 0 {
			wait = min(wait, left)
		} else {
			l.signal()
		}
	}
	return wait
}

// wake has the goroutine of Start look again.
func (n *Network) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}
