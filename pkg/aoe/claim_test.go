package aoe_test

import (
	"testing"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

func TestClaim(t *testing.T) {
	for text, want := range map[string]aoe.Claim{
		"aoe-csi/1 abcdefghijklmno2 team/data":               {Generation: "abcdefghijklmno2", Owner: "team/data"},
		"aoe-csi/1 abcdefghijklmno2 team/data scrubbed=4096": {Generation: "abcdefghijklmno2", Owner: "team/data", Scrubbed: 4096},
		"aoe-csi/1 abcdefghijklmno2 -":                       {Generation: "abcdefghijklmno2", Owner: "-"},
	} {
		got, err := aoe.ParseClaim(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseClaim(%q) = %+v, %v; written again %q", text, got, err, got.String())
		}
	}
	for _, text := range []string{"", "aoe-csi/1", "aoe-csi/1 short x", "aoe-csi/1 abcdefghijklmno2x y", "aoe-csi:abcdefghijklmno2",
		"aoe-csi/2 abcdefghijklmno2 y", "aoe-csi/1 abcdefghijklmno2 y scrubbed=many"} {
		if c, err := aoe.ParseClaim(text); err == nil {
			t.Errorf("ParseClaim(%q) = %+v", text, c)
		}
	}
	// An owner cannot pretend a progress.
	c, err := aoe.ParseClaim(aoe.Claim{Generation: "abcdefghijklmno2", Owner: "a scrubbed=9"}.String())
	if err != nil || c.Scrubbed != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}
