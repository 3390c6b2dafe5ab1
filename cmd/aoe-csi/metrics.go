package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// metricsRetry is the pause before an address that is in use is tried again.
const metricsRetry = 10 * time.Second

// serveMetrics answers GET /metrics at an address until ctx ends. Whatever fails is logged and tried again: volumes do not depend on it.
func serveMetrics(ctx context.Context, address string, collectors ...prometheus.Collector) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // a scrape cut off loses nothing
	for {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			err = server.Serve(listener)
		}
		if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
			return
		}
		klog.ErrorS(err, "Metrics are not served", "address", address)
		select {
		case <-ctx.Done():
			return
		case <-time.After(metricsRetry):
		}
	}
}
