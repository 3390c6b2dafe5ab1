package shelf

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

var (
	lunBytes = prometheus.NewDesc("aoe_csi_pool_lun_bytes", "Size of each LUN of the pool, by whether it can be taken.",
		[]string{"lun", "state"}, nil)
	overwriteBytes = prometheus.NewDesc("aoe_csi_pool_overwrite_bytes", "Bytes to overwrite on a LUN that is scrubbed or wiped now.",
		[]string{"lun", "reason"}, nil)
	overwrittenBytes = prometheus.NewDesc("aoe_csi_pool_overwritten_bytes", "How many of them are done.",
		[]string{"lun", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Proxy) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lunBytes, overwriteBytes, overwrittenBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It asks nobody: a LUN that did not answer the last time is "silent", and has 0 bytes.
func (p *Proxy) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value uint64, lun aoe.Addr, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), lun.String(), label)
	}
	for _, s := range p.slots {
		size, refused, _ := s.offer()
		state := "free"
		switch {
		case size == 0:
			state = "silent"
		case refused != "":
			state = "taken"
		}
		gauge(lunBytes, uint64(size), s.addr, state)
		s.mu.Lock()
		j := s.job
		s.mu.Unlock()
		if j != nil {
			gauge(overwriteBytes, j.sectors*aoe.SectorSize, s.addr, j.what)
			gauge(overwrittenBytes, j.at.Load()*aoe.SectorSize, s.addr, j.what)
		}
	}
}
