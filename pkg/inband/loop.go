package inband

import (
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/pool"
)

// run is the loop: links belong to it.
func (c *Client) run() {
	for {
		next, closing := c.transmit(time.Now())
		if closing {
			break
		}
		if err := c.wait(time.Until(next)); err != nil {
			c.failure = err
			break
		}
		for _, p := range c.ports {
			c.receive(p, p.answers)
			if p.config != nil {
				c.receive(p, p.config)
			}
		}
	}
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.failure = errors.Join(c.failure, c.closePorts(), c.frames.Close(), c.waker.Close())
	close(c.done)
}

// transmit sends what was posted and what is due again. It returns when to be called next.
func (c *Client) transmit(now time.Time) (next time.Time, closing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next = now.Add(sleepMost)
	posted := c.posted
	c.posted = nil
	for _, x := range posted {
		if x.once {
			c.send(x)
		}
	}
	for tag, x := range c.waiting {
		if !x.due.After(now) {
			if x.tries == 0 {
				delete(c.waiting, tag)
				x.result <- nil
				continue
			}
			if !x.due.IsZero() {
				c.resent.Add(1)
			}
			x.tries--
			c.send(x)
			x.due = now.Add(x.timeout)
			x.timeout = max(x.timeout, min(2*x.timeout, mostTimeout))
		}
		if x.due.Before(next) {
			next = x.due
		}
	}
	return next, c.closing
}

// refresher is a link that can be brought back.
type refresher interface{ Refresh() error }

// send sends a frame; what the link does not take is lost, and sent again when it is due.
func (c *Client) send(x *exchange) {
	f := c.frames.Get()
	if f == nil {
		return
	}
	defer f.Release()
	f.SetLen(copy(f.Buf(), x.bytes))
	n, err := x.port.answers.Send([]*pool.Frame{f})
	if n > 0 {
		c.sent.Add(1)
	}
	if r, ok := x.port.answers.(refresher); ok && errors.Is(err, link.ErrDown) {
		_ = r.Refresh() // if it is still down it is tried again with the next frame
	}
}

// wait sleeps until a link may have something or somebody posted.
func (c *Client) wait(most time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(c.wakeFD), Events: unix.POLLIN}}
	for _, p := range c.ports {
		fds = append(fds, unix.PollFd{Fd: int32(p.answers.FD()), Events: unix.POLLIN})
		if p.config != nil {
			fds = append(fds, unix.PollFd{Fd: int32(p.config.FD()), Events: unix.POLLIN})
		}
	}
	_, err := unix.Poll(fds, int(max(0, most)/time.Millisecond)+1)
	if err != nil && err != unix.EINTR {
		return os.NewSyscallError("poll", err)
	}
	if fds[0].Revents != 0 {
		var drain [8]byte
		_, _ = unix.Read(c.wakeFD, drain[:]) // it is readable; nothing depends on the count
	}
	return nil
}

// receive takes what a link has.
func (c *Client) receive(p *port, from link.Link) {
	var frames [receiveBatch][]byte
	for {
		n, err := from.Receive(frames[:])
		if err != nil {
			if r, ok := from.(refresher); ok {
				_ = r.Refresh() // if it is still down it is tried again in the next turn
			}
			return
		}
		if n == 0 {
			return
		}
		for _, b := range frames[:n] {
			c.take(p, from == p.config, b)
		}
	}
}

// take gives a frame to whoever waits for it. Answers to our own config queries come over both links of an interface; they count once.
func (c *Client) take(p *port, config bool, b []byte) {
	f, err := aoe.ParseFrame(b)
	if err != nil || !f.IsResponse() || f.Src().IsMulticast() || f.Addr().IsWild() {
		return
	}
	own := f.Tag()&aoe.TagOwn != 0 && aoe.TagShard(f.Tag()) == Shard
	if config && own {
		return
	}
	c.received.Add(1)
	c.mu.Lock()
	x := c.waiting[f.Tag()]
	if x != nil && x.port == p && x.addr == f.Addr() && x.mac == f.Src() && x.command == f.Command() && f.Dst() == p.mac {
		delete(c.waiting, f.Tag())
		x.result <- slices.Clone(b)
	}
	listener := c.listener
	c.mu.Unlock()
	if listener != nil && f.Command() == aoe.CommandConfig && !f.IsError() {
		if a, ok := parseAnswer(p.name, f); ok {
			listener(a)
		}
	}
}
