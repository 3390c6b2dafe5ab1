package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWaited(t *testing.T) {
	for content, want := range map[string]time.Duration{
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n":          0,
		"some avg10=12.34 avg60=1.00 avg300=0.10 total=123456789\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=7\n": 123456789 * time.Microsecond,
		"": -1,
		"full avg10=1.00 avg60=0.00 avg300=0.00 total=7\n": -1,
	} {
		path := filepath.Join(t.TempDir(), "memory")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := waited(file)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v (%v), want %v", content, got, err, want)
		}
		_ = file.Close() // it was only read
	}
}
