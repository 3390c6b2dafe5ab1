package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/aoe-csi/aoe-csi/pkg/provision"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

func TestParseAddress(t *testing.T) {
	tests := []struct {
		address string
		good    bool
	}{
		{"tcp://10.0.0.1:7420", true},
		{"tcp://[fd00::1]:7420", true},
		{"tcp://storage.example:7420", true},
		{"unix:///run/aoe-csi/shelf-7-api.sock", true},
		{"", false},
		{"10.0.0.1:7420", false},
		{"tcp://10.0.0.1", false},
		{"tcp://:7420", false},
		{"tcp://10.0.0.1:", false},
		{"tcp://10.0.0.1:7420/x", false},
		{"http://10.0.0.1:7420", false},
		{"unix://relative", false},
		{"unix:", false},
		{"tcp://%zz", false},
	}
	for _, tt := range tests {
		if err := provision.ParseAddress(tt.address); (err == nil) != tt.good {
			t.Errorf("ParseAddress(%q) = %v", tt.address, err)
		}
	}
}

func TestTwoShelvesWithOneNumber(t *testing.T) {
	first, second, other := newFakeShelf(7), newFakeShelf(7), newFakeShelf(8)
	second.uuid = "another"
	other.size = 1 << 30
	w := newWorld(t, first, second, other)
	ctx := context.Background()
	if v := w.create("pvc-1", 4096); v.ID.Addr.Shelf != 8 {
		t.Errorf("made on shelf %d, which is two", v.ID.Addr.Shelf)
	}
	seven := uint16(7)
	_, err := w.service.Create(ctx, volume.CreateRequest{Name: "pvc-2", Parameters: volume.Parameters{Shelf: &seven}})
	if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "two shelves have number 7: unix:///shelf-0 (uuid-7) and unix:///shelf-1 (another)") {
		t.Errorf("error %v", err)
	}
	// It does not become right by one of them not answering.
	second.setDown(true)
	if _, err := w.set.Get(ctx, 7, ""); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("with one of them down: %v", err)
	}
	for _, f := range []*fakeShelf{first, second} {
		if n, _ := f.count(""); n != 0 {
			t.Errorf("%d LUNs on a shelf that is two", n)
		}
	}
}

func TestOneShelfWithTwoAddresses(t *testing.T) {
	f := newFakeShelf(7)
	w := newWorld(t, f, f)
	w.create("pvc-1", 4096)
	capacity, err := w.service.Capacity(context.Background(), volume.CapacityRequest{})
	if err != nil || uint64(capacity.AvailableBytes) != f.size-4096 {
		t.Errorf("capacity %+v, %v: counted twice?", capacity, err)
	}
}

func TestShelfThatIsAnotherNow(t *testing.T) {
	f := newFakeShelf(7)
	w := newWorld(t, f)
	v := w.create("pvc-1", 4096)
	ctx := context.Background()
	tests := []struct {
		name   string
		number uint32
		uuid   string
		want   error
		text   string
	}{
		{"other directory", 7, "another", volume.ErrPrecondition, "is not the shelf that made the volume"},
		{"other number", 9, "uuid-7", volume.ErrUnavailable, "is shelf 9 now"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.mu.Lock()
			f.number, f.uuid = tt.number, tt.uuid
			f.mu.Unlock()
			err := w.service.Delete(ctx, v.ID.String())
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("delete: %v, want %v with %q", err, tt.want, tt.text)
			}
			if f.lun(string(v.ID.Generation)) == nil {
				t.Error("deleted on another shelf")
			}
			f.mu.Lock()
			f.number, f.uuid = 7, "uuid-7"
			f.mu.Unlock()
			if err := w.set.Refresh(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShelvesComeAndGo(t *testing.T) {
	network := newNetwork()
	for path, number := range map[string]uint32{"/a": 1, "/b": 2} {
		network.serve(t, path, newFakeShelf(number), nil)
	}
	var named []string
	var failure error
	set := provision.NewShelves(provision.ShelvesConfig{
		Sources:     []provision.Source{func(context.Context) ([]string, error) { return named, failure }},
		Timeout:     testTimeout,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(network.dial)},
	})
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	known := func() []uint16 {
		var numbers []uint16
		survey, err := set.Survey(ctx)
		if err != nil {
			t.Error(err)
		}
		for i := range survey {
			if survey[i].Err == nil {
				numbers = append(numbers, survey[i].Number)
			}
		}
		return numbers
	}
	tests := []struct {
		name    string
		named   []string
		failure error
		want    []uint16
	}{
		{"none yet", nil, nil, nil},
		{"one", []string{"unix:///a"}, nil, []uint16{1}},
		{"another one", []string{"unix:///b", "unix:///a"}, nil, []uint16{1, 2}},
		{"the source does not answer", nil, errors.New("API server is away"), []uint16{1, 2}},
		{"nonsense is left out", []string{"unix:///b", "http://x", "tcp://10.0.0.1:7420"}, nil, []uint16{2}},
	}
	for _, tt := range tests {
		named, failure = tt.named, tt.failure
		if got := known(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: shelves %v, want %v", tt.name, got, tt.want)
		}
	}
	_, err := set.Get(ctx, 1, "")
	if !errors.Is(err, volume.ErrUnavailable) || !strings.Contains(err.Error(), "known: 2 at unix:///b") {
		t.Errorf("shelf that is gone: %v", err)
	}
}

func TestNoSourceAnswers(t *testing.T) {
	set := provision.NewShelves(provision.ShelvesConfig{Sources: []provision.Source{
		func(context.Context) ([]string, error) { return nil, errors.New("API server is away") },
	}})
	if _, err := set.Survey(context.Background()); err == nil || !strings.Contains(err.Error(), "API server is away") {
		t.Errorf("survey: %v", err)
	}
}

// A dead shelf costs its own volumes time, not the others'.
func TestSilentShelfIsNotAskedForOthers(t *testing.T) {
	dead, alive := newFakeShelf(7), newFakeShelf(8)
	w := newWorld(t, dead, alive)
	eight := uint16(8)
	v, err := w.service.Create(context.Background(), volume.CreateRequest{Name: "pvc-1", Parameters: volume.Parameters{Shelf: &eight}})
	if err != nil {
		t.Fatal(err)
	}
	dead.setDown(true)
	_, before := dead.count("GetInfo")
	w.publish(v, "n1")
	if err := w.service.Unpublish(context.Background(), v.ID.String(), "n1"); err != nil {
		t.Error(err)
	}
	if err := w.service.Delete(context.Background(), v.ID.String()); err != nil {
		t.Error(err)
	}
	if _, after := dead.count("GetInfo"); after != before {
		t.Errorf("the dead shelf was asked %d times", after-before)
	}
}

func TestServiceSource(t *testing.T) {
	port := func(name string, number int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number}
	}
	endpoints := func(ready *bool, name, service string, kind discoveryv1.AddressType, ips []string, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: kind, Ports: ports,
		}
		for _, ip := range ips {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ready}})
		}
		return s
	}
	slice := func(name, service string, kind discoveryv1.AddressType, ips []string, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
		return endpoints(nil, name, service, kind, ips, ports...) // nil is to be taken for ready
	}
	yes, no := true, false
	udp := corev1.ProtocolUDP
	number := int32(7420)
	client := fake.NewClientset(
		slice("a", "shelves", discoveryv1.AddressTypeIPv4, []string{"10.0.0.1", "10.0.0.2"}, port("shelf", 7420)),
		slice("b", "shelves", discoveryv1.AddressTypeIPv6, []string{"fd00::1"}, port("metrics", 9000), port("shelf", 7421)),
		slice("c", "shelves", discoveryv1.AddressTypeIPv4, []string{"10.0.0.3"}, port("", 7422)),
		slice("d", "shelves", discoveryv1.AddressTypeFQDN, []string{"x.example"}, port("shelf", 7420)),
		slice("e", "shelves", discoveryv1.AddressTypeIPv4, []string{"10.0.0.4"}, discoveryv1.EndpointPort{Port: &number, Protocol: &udp}),
		endpoints(&yes, "g", "shelves", discoveryv1.AddressTypeIPv4, []string{"10.0.0.5"}, port("shelf", 7420)),
		endpoints(&no, "h", "shelves", discoveryv1.AddressTypeIPv4, []string{"10.0.0.6"}, port("shelf", 7420)), // its pod has moved
		slice("f", "others", discoveryv1.AddressTypeIPv4, []string{"10.0.0.9"}, port("shelf", 7420)),
	)
	got, err := provision.ServiceSource(client, "ns", "shelves")(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{"tcp://10.0.0.1:7420", "tcp://10.0.0.2:7420", "tcp://10.0.0.3:7422", "tcp://10.0.0.5:7420", "tcp://[fd00::1]:7421"}
	if !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
}
