package initiator

import "fmt"

// check panics if the core's books contradict each other: a mistake in them is found where it is made, not when it has done harm.
func (c *Core) check() {
	used, parked, inflight := 0, 0, 0
	for i := range c.table.entries {
		e := &c.table.entries[i]
		switch {
		case e.req == nil:
			continue
		case c.table.find(e.tag) != e:
			panic(fmt.Sprintf("entry %#x is not found by its tag", e.tag))
		case e.parked:
			parked++
		case e.path == nil || !e.path.used || e.path.phase != pathUp:
			panic(fmt.Sprintf("entry %#x is outstanding on no path, or on one in doubt", e.tag))
		}
		used++
	}
	if used != c.table.used() || parked != c.parked {
		panic(fmt.Sprintf("%d entries in use and %d parked, counted are %d and %d", used, parked, c.table.used(), c.parked))
	}
	for i := range c.paths {
		p := &c.paths[i]
		n := p.order.check(p)
		if n != p.inflight {
			panic(fmt.Sprintf("path %d: %d entries in order, counted are %d", i, n, p.inflight))
		}
		inflight += n
	}
	if inflight != used-parked {
		panic(fmt.Sprintf("%d entries in order, %d are in use and %d of them parked", inflight, used, parked))
	}
	if c.durable > c.acked {
		panic(fmt.Sprintf("%d writes durable, %d acknowledged", c.durable, c.acked))
	}
}

// check counts the entries of p, whose order it is.
func (o *order) check(p *path) (n int) {
	var before *entry
	for e := o.first; e != nil; before, e = e, e.after {
		if e.req == nil || e.parked || e.path != p || e.before != before {
			panic(fmt.Sprintf("entry %#x is in order where it does not belong", e.tag))
		}
		if n++; n > maxWindow {
			panic("a circle of entries")
		}
	}
	if o.last != before {
		panic("the last entry is not the last")
	}
	return n
}
