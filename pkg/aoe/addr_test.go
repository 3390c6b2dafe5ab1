package aoe

import (
	"strings"
	"testing"
)

func TestParseAddr(t *testing.T) {
	tests := []struct {
		in   string
		want Addr
		err  string // part of the message; empty: good
	}{
		{"e7.3", Addr{7, 3}, ""},
		{"e0.0", Addr{0, 0}, ""},
		{"e65534.254", Addr{65534, 254}, ""},
		{"e65535.3", Addr{}, "shelf: 65535 is above 65534"},
		{"e7.255", Addr{}, "slot: 255 is above 254"},
		{"e7.99999999999999999999", Addr{}, "slot: "},
		{"7.3", Addr{}, "want e<shelf>.<slot>"},
		{"e7", Addr{}, "want e<shelf>.<slot>"},
		{"", Addr{}, "want e<shelf>.<slot>"},
		{"e.3", Addr{}, "shelf: "},
		{"e7.", Addr{}, "slot: "},
		{"e07.3", Addr{}, "shelf: "},
		{"e7.03", Addr{}, "slot: "},
		{"e+7.3", Addr{}, "shelf: "},
		{"e-7.3", Addr{}, "shelf: "},
		{"e7.3.1", Addr{}, "slot: "},
		{"e7.3 ", Addr{}, "slot: "},
		{"e*.*", Addr{}, "shelf: "},
	}
	for _, tt := range tests {
		got, err := ParseAddr(tt.in)
		if tt.err == "" {
			if err != nil || got != tt.want || got.String() != tt.in {
				t.Errorf("%q: %v, %v", tt.in, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %v, %v; want an error with %q", tt.in, got, err, tt.err)
		}
	}
}

func TestMatches(t *testing.T) {
	own := Addr{7, 3}
	tests := []struct {
		to   Addr
		want bool
		wild bool
		text string
	}{
		{Addr{7, 3}, true, false, "e7.3"},
		{Addr{7, AnySlot}, true, true, "e7.*"},
		{Addr{AnyShelf, 3}, true, true, "e*.3"},
		{Any, true, true, "e*.*"},
		{Addr{7, 4}, false, false, "e7.4"},
		{Addr{8, 3}, false, false, "e8.3"},
		{Addr{8, AnySlot}, false, true, "e8.*"},
		{Addr{AnyShelf, 4}, false, true, "e*.4"},
	}
	for _, tt := range tests {
		if tt.to.Matches(own) != tt.want || tt.to.IsWild() != tt.wild || tt.to.String() != tt.text {
			t.Errorf("%v: %v, %v", tt.to, tt.to.Matches(own), tt.to.IsWild())
		}
	}
}

func TestParseMAC(t *testing.T) {
	for in, want := range map[string]MAC{
		"02:00:00:0a:bc:de": {2, 0, 0, 0xa, 0xbc, 0xde},
		"ff:ff:ff:ff:ff:ff": Broadcast,
	} {
		if got, err := ParseMAC(in); err != nil || got != want || got.String() != in {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if got, err := ParseMAC("02:00:00:0A:BC:DE"); err != nil || got.String() != "02:00:00:0a:bc:de" {
		t.Errorf("capitals: %v, %v", got, err)
	}
	for _, in := range []string{"", "02", "02-00-00-00-00-01", "02:00:00:00:00:0g", "02:00:00:00:00:01:", "0200:00:00:00:01", "02:00:00:00:00:1"} {
		if got, err := ParseMAC(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
	if !Broadcast.IsMulticast() || testSrc.IsMulticast() || !(MAC{0x01, 0, 0x5e}).IsMulticast() {
		t.Error("multicast bit")
	}
}

func TestTags(t *testing.T) {
	tests := []struct {
		shard, epoch uint8
		counter      uint32
		want         uint32
		session      bool
	}{
		{0, 0, 0, 0x80000000, false},
		{1, 0, 5, 0x90000005, false},
		{0, 1, 0, 0x80400000, true},
		{7, 63, TagCounters - 1, 0xffffffff, true},
		{5, 42, 0x123456, 0xda923456, true},
	}
	for _, tt := range tests {
		tag := MakeTag(tt.shard, tt.epoch, tt.counter)
		if tag != tt.want || IsSession(tag) != tt.session {
			t.Errorf("%+v: %#x, session %v", tt, tag, IsSession(tag))
		}
		if TagShard(tag) != tt.shard || TagEpoch(tag) != tt.epoch || TagCounter(tag) != tt.counter {
			t.Errorf("%#x read back as %d, %d, %#x", tag, TagShard(tag), TagEpoch(tag), TagCounter(tag))
		}
	}
	if MakeTag(1, 2, TagCounters+3) != MakeTag(1, 2, 3) {
		t.Error("the counter does not wrap within its bits")
	}
	if IsSession(0x00400001) {
		t.Error("the kernel driver's tag taken for a session's")
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		got  interface{ String() string }
		want string
	}{
		{CommandOpen, "OPEN"}, {Command(0x42), "command 66"},
		{ErrorReserved, "target reserved"}, {ErrorCode(77), "AoE error 77"},
		{ConfigForceSet, "force set"}, {ConfigCommand(9), "config command 9"},
		{OpenStale, "stale incarnation"}, {OpenStatus(99), "OPEN status 99"},
		{Generation([]byte("abcdefghijklmnop")), "abcdefghijklmnop"},
	} {
		if tt.got.String() != tt.want {
			t.Errorf("%q, want %q", tt.got.String(), tt.want)
		}
	}
}
