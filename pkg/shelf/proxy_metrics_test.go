package shelf_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// TestPoolMetrics show what LUNs there are, and how far the scrubbing of one is.
func TestPoolMetrics(t *testing.T) {
	targets := vblades(2048, 64<<20/512*3)
	targets[1].NoWrite = true
	p := newPool(t, false, targets...)
	v := p.create("data", 4*mib)
	p.look()
	want := `
# HELP aoe_csi_pool_lun_bytes Size of each LUN of the pool, by whether it can be taken.
# TYPE aoe_csi_pool_lun_bytes gauge
aoe_csi_pool_lun_bytes{lun="e9.0",state="free"} 1.048576e+06
aoe_csi_pool_lun_bytes{lun="e9.1",state="taken"} 2.01326592e+08
`
	if err := testutil.CollectAndCompare(p.proxy, strings.NewReader(want), "aoe_csi_pool_lun_bytes"); err != nil {
		t.Error(err)
	}
	targets[1].Put(0, 7)
	if err := p.service.Delete(t.Context(), v.ID.String()); !errors.Is(err, volume.ErrPending) {
		t.Errorf("deleted without an answer to a write: %v", err)
	}
	want = `
# HELP aoe_csi_pool_overwrite_bytes Bytes to overwrite on a LUN that is scrubbed or wiped now.
# TYPE aoe_csi_pool_overwrite_bytes gauge
aoe_csi_pool_overwrite_bytes{lun="e9.1",reason="scrubbing"} 2.01326592e+08
`
	if err := testutil.CollectAndCompare(p.proxy, strings.NewReader(want), "aoe_csi_pool_overwrite_bytes"); err != nil {
		t.Error(err)
	}
	targets[1].SetDown(true)
	p.proxy.Know(t.Context(), nil)
	want = `
# HELP aoe_csi_pool_lun_bytes Size of each LUN of the pool, by whether it can be taken.
# TYPE aoe_csi_pool_lun_bytes gauge
aoe_csi_pool_lun_bytes{lun="e9.0",state="silent"} 0
aoe_csi_pool_lun_bytes{lun="e9.1",state="silent"} 0
`
	if err := testutil.CollectAndCompare(p.proxy, strings.NewReader(want), "aoe_csi_pool_lun_bytes"); err != nil {
		t.Error(err)
	}
}
