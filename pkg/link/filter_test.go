package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func sizeName(n int) string { return fmt.Sprintf("%dB", n) }

// aoeFrame is a frame as filters see it.
type aoeFrame struct {
	ethertype uint16
	flags     byte // with the version
	shelf     uint16
	command   byte
	tag       uint32
	length    int
}

func (f aoeFrame) bytes() []byte {
	b := make([]byte, max(f.length, headerLen))
	binary.BigEndian.PutUint16(b[offEtherType:], f.ethertype)
	b[offVersion] = f.flags
	binary.BigEndian.PutUint16(b[offShelf:], f.shelf)
	b[offCommand] = f.command
	binary.BigEndian.PutUint32(b[offTag:], f.tag)
	return b[:f.length]
}

// filtered is a pair of datagram sockets, the receiving one with the filter: the kernel runs the same program on them as on
// packet sockets, but needs no privilege.
func filtered(t *testing.T, f Filter) (send, receive int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Close(fds[0]), unix.Close(fds[1])); err != nil {
			t.Error(err)
		}
	})
	if err := attachFilter(fds[1], f); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

func TestFilters(t *testing.T) {
	request := aoeFrame{etherType, 0x10, 7, 0, 0x80000001, 60}
	response := aoeFrame{etherType, 0x18, 7, 0, 0xa0000001, 60}
	with := func(f aoeFrame, change func(*aoeFrame)) aoeFrame {
		change(&f)
		return f
	}
	shard := func(tag uint32) aoeFrame { return with(response, func(f *aoeFrame) { f.tag = tag }) }
	config := with(response, func(f *aoeFrame) { f.command, f.tag = 1, 0 })
	filters := map[string]Filter{
		"shard 0": FilterResponses(0), "shard 2": FilterResponses(2), "shard 7": FilterResponses(7),
		"config": FilterConfig(), "shelf 7": FilterRequests(7), "shelf 9": FilterRequests(9),
	}
	tests := []struct {
		name  string
		frame aoeFrame
		who   []string
	}{
		{"request", request, []string{"shelf 7"}},
		{"request to every shelf", with(request, func(f *aoeFrame) { f.shelf = 0xffff }), []string{"shelf 7", "shelf 9"}},
		{"request of version 2", with(request, func(f *aoeFrame) { f.flags = 0x20 }), []string{"shelf 7"}},
		{"request of the kernel's driver", with(request, func(f *aoeFrame) { f.tag = 5 }), []string{"shelf 7"}},
		{"config request", with(request, func(f *aoeFrame) { f.command = 1 }), []string{"shelf 7"}},
		{"answer", response, []string{"shard 2"}},
		{"answer of 24 bytes", with(response, func(f *aoeFrame) { f.length = 24 }), []string{"shard 2"}},
		{"answer of 23 bytes", with(response, func(f *aoeFrame) { f.length = 23 }), nil},
		{"empty", with(response, func(f *aoeFrame) { f.length = 1 }), nil},
		{"refusal", with(response, func(f *aoeFrame) { f.flags = 0x1c }), []string{"shard 2"}},
		{"first shard", shard(0x80000001), []string{"shard 0"}},
		{"last shard", shard(0xffffffff), []string{"shard 7"}},
		{"answer to the kernel's driver", shard(0x20000001), nil},
		{"answer of version 2", with(response, func(f *aoeFrame) { f.flags = 0x28 }), nil},
		{"advertisement", config, []string{"config"}},
		{"config answer", with(config, func(f *aoeFrame) { f.tag = 0xa0000009 }), []string{"config", "shard 2"}},
		{"IPv4", with(response, func(f *aoeFrame) { f.ethertype = 0x0800 }), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := map[string]bool{}
			for _, w := range tt.who {
				want[w] = true
			}
			for name, f := range filters {
				send, receive := filtered(t, f)
				// A filter's "no" is an error of the sender's on unix sockets.
				if err := unix.Send(send, tt.frame.bytes(), 0); err != nil && !errors.Is(err, unix.EPERM) {
					t.Fatal(err)
				}
				buf := make([]byte, 128)
				n, _, err := unix.Recvfrom(receive, buf, 0)
				if got := err == nil; got != want[name] {
					t.Errorf("%s received: %v, want %v", name, got, want[name])
				}
				if err == nil && n != tt.frame.length {
					t.Errorf("%s cut %d bytes to %d", name, tt.frame.length, n)
				}
			}
		})
	}
}
