package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// DefaultTimeout is how long a shelf may take to answer a call.
const DefaultTimeout = 10 * time.Second

// Source names the addresses at which shelves are, tcp://host:port or unix:///path.
type Source func(ctx context.Context) ([]string, error)

// surveyTimeout is how long a shelf may take to say who it is and what room it has.
const surveyTimeout = 4 * time.Second

// StaticSource returns a source that always names the same addresses.
func StaticSource(addresses ...string) Source {
	return func(context.Context) ([]string, error) { return addresses, nil }
}

// ShelvesConfig is what a set of shelves needs.
type ShelvesConfig struct {
	Sources     []Source
	Credentials credentials.TransportCredentials // of the controller; nil: unix sockets only
	Timeout     time.Duration                    // of each call; 0: DefaultTimeout
	DialOptions []grpc.DialOption                // more of them, for tests
}

// Shelves is the set of shelves: it finds them, keeps a connection to each, and knows
// which number is where. Its methods may be called at the same time.
type Shelves struct {
	config ShelvesConfig

	discovering sync.Mutex       // one at a time; taken before mu
	named       map[int][]string // by source: what it named last; guarded by discovering

	mu        sync.Mutex // guards what is below, and every endpoint's last
	endpoints map[string]*endpoint
	closed    bool
}

// NewShelves returns a set without asking anyone. Close ends it.
func NewShelves(c ShelvesConfig) *Shelves {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	return &Shelves{config: c, endpoints: map[string]*endpoint{}, named: map[int][]string{}}
}

// Close ends all connections; calls under way fail.
func (s *Shelves) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var failed []error
	for address, e := range s.endpoints {
		failed = append(failed, e.conn.Close())
		delete(s.endpoints, address)
	}
	return errors.Join(failed...)
}

// Get returns the shelf of this number after it said that it is the one with this UUID
// (empty: any). ErrUnavailable if it is not known or does not answer; ErrPrecondition if
// it is another shelf, or two shelves have the number.
func (s *Shelves) Get(ctx context.Context, number uint16, uuid string) (*Shelf, error) {
	ends, err := s.lookup(number)
	if len(ends) == 0 && err == nil {
		if err := s.Refresh(ctx); err != nil {
			return nil, err
		}
		ends, err = s.lookup(number)
	}
	if err != nil {
		return nil, err
	}
	var failed error
	for _, e := range ends {
		info, err := e.info(ctx)
		if err != nil {
			failed = numbered(err, number)
			continue
		}
		s.learn(e, info)
		switch {
		case info.Number != number:
			failed = fmt.Errorf("%w: shelf %d: at %s is shelf %d now", volume.ErrUnavailable, number, e.address, info.Number)
		case uuid != "" && info.UUID != uuid:
			return nil, fmt.Errorf("%w: shelf %d at %s is not the shelf that made the volume (it is %s, the volume's is %s)",
				volume.ErrPrecondition, number, e.address, info.UUID, uuid)
		default:
			return &Shelf{Info: *info, end: e}, nil
		}
	}
	if failed == nil {
		failed = fmt.Errorf("%w: shelf %d is not known; known: %s", volume.ErrUnavailable, number, s.known())
	}
	return nil, failed
}

// numbered puts the number that was looked for into an error of an endpoint that did not
// get to say it.
func numbered(err error, number uint16) error {
	var failure *ShelfError
	if errors.As(err, &failure) && failure.Shelf == "shelf" {
		failure.Shelf = fmt.Sprintf("shelf %d", number)
	}
	return err
}

// lookup returns the endpoints that last said to be this number, in the order of their
// addresses. Two different shelves with one number are refused: which of them a volume
// is on cannot be told.
func (s *Shelves) lookup(number uint16) ([]*endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ends []*endpoint
	for _, e := range s.endpoints {
		if e.last != nil && e.last.Number == number {
			ends = append(ends, e)
		}
	}
	slices.SortFunc(ends, func(a, b *endpoint) int { return strings.Compare(a.address, b.address) })
	for _, e := range ends {
		if e.last.UUID != ends[0].last.UUID {
			return nil, fmt.Errorf("%w: two shelves have number %d: %s (%s) and %s (%s); neither is used until one of them gets another number",
				volume.ErrPrecondition, number, ends[0].address, ends[0].last.UUID, e.address, e.last.UUID)
		}
	}
	return ends, nil
}

// Knows says whether a shelf of this number has answered.
func (s *Shelves) Knows(number uint16) bool {
	ends, err := s.lookup(number)
	return len(ends) > 0 || err != nil
}

// known lists the shelves for an error message.
func (s *Shelves) known() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, e := range s.endpoints {
		if e.last == nil {
			list = append(list, e.address+" (never answered)")
		} else {
			list = append(list, fmt.Sprintf("%d at %s", e.last.Number, e.address))
		}
	}
	if len(list) == 0 {
		return "none; is a target running, and do --shelf or --shelf-service name it?"
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func (s *Shelves) learn(e *endpoint, info *ShelfInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.last != nil && e.last.UUID != info.UUID {
		klog.Background().Info("Another shelf is at this address now", "address", e.address,
			"was", e.last.Number, "wasUUID", e.last.UUID, "is", info.Number, "isUUID", info.UUID)
	}
	e.last = info
}

// Surveyed is what a shelf said in a survey, or why it said nothing.
type Surveyed struct {
	Number   uint16
	Known    bool // Number and Labels are valid, as the shelf told them last
	Labels   map[string]string
	Shelf    *Shelf
	Capacity ShelfCapacity
	Err      error
}

// Survey asks all shelves who they are and what room they have, at the same time, and
// returns one answer per shelf, in the order of numbers; silent ones come with Err.
func (s *Shelves) Survey(ctx context.Context) ([]Surveyed, error) {
	if err := s.discover(ctx); err != nil {
		return nil, err
	}
	answers := each(s.list(), func(e *endpoint) Surveyed { return s.survey(ctx, e) })
	slices.SortStableFunc(answers, func(a, b Surveyed) int { return int(a.Number) - int(b.Number) })
	var result []Surveyed
	for _, a := range answers {
		if _, err := s.lookup(a.Number); a.Known && err != nil {
			a.Err = err
		}
		// A shelf with two addresses is one shelf; an address that answers comes before one that does not.
		i := slices.IndexFunc(result, func(r Surveyed) bool { return r.Known && a.Known && r.Number == a.Number })
		switch {
		case i < 0:
			result = append(result, a)
		case result[i].Err != nil && a.Err == nil:
			result[i] = a
		}
	}
	return result, nil
}

// survey asks one endpoint. It does not wait as long as other calls do: one shelf that is
// gone must not hold up every volume that is made elsewhere.
func (s *Shelves) survey(ctx context.Context, e *endpoint) Surveyed {
	ctx, cancel := context.WithTimeout(ctx, min(surveyTimeout, s.config.Timeout))
	defer cancel()
	var a Surveyed
	s.mu.Lock()
	if e.last != nil {
		a.Number, a.Labels, a.Known = e.last.Number, e.last.Labels, true
	}
	s.mu.Unlock()
	info, err := e.info(ctx)
	if err != nil {
		if a.Known {
			err = numbered(err, a.Number)
		}
		a.Err = err
		return a
	}
	s.learn(e, info)
	a.Number, a.Labels, a.Known, a.Shelf = info.Number, info.Labels, true, &Shelf{Info: *info, end: e}
	a.Capacity, a.Err = a.Shelf.capacity(ctx)
	return a
}
