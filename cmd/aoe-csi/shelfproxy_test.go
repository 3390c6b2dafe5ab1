package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/fake"
)

func TestParseSlots(t *testing.T) {
	for text, want := range map[string][]uint8{
		"0": {0}, "0-2,7": {0, 1, 2, 7}, "254, 3-3": {254, 3},
		"": nil, "255": nil, "3-1": nil, "1,1": nil, "0-3,2": nil, "a": nil, "1-": nil, "-1": nil, "1;2": nil,
	} {
		got, err := parseSlots(text)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

// TestShelfProxiesTakeTurns: one works at a time, the next one begins when the first has ended its work and not before, soon after.
func TestShelfProxiesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := fake.NewClientset().CoordinationV1()
		opt := shelfProxyOptions{shelf: 9, namespace: "ns"}
		working := 0
		work := func(began chan<- struct{}) func(context.Context) error {
			return func(ctx context.Context) error {
				if working++; working > 1 {
					t.Error("two proxies work at once")
				}
				close(began)
				<-ctx.Done()
				time.Sleep(leaseRetry * 3 / 2) // a scrubber ends its last frames
				working--
				return nil
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan struct{}), make(chan struct{})
		ended := make(chan error, 2)
		go func() { ended <- leadShelfProxy(ctx, opt, leases, work(first)) }()
		<-first
		secondCtx, cancelSecond := context.WithCancel(t.Context())
		go func() { ended <- leadShelfProxy(secondCtx, opt, leases, work(second)) }()
		cancel()
		began := time.Now()
		<-second
		if took := time.Since(began); took > leaseDuration/2 {
			t.Errorf("the second proxy began after %v: the lease was not given back", took)
		}
		cancelSecond()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
}
