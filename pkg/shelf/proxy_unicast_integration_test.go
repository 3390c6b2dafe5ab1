//go:build integration

package shelf_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// counter hears what the storage host hears.
type counter struct {
	t    *testing.T
	link link.Link
}

// from counts the frames of a host since the last call, and the broadcasts among them.
func (c *counter) from(mac aoe.MAC) (frames, broadcasts int) {
	c.t.Helper()
	var batch [64][]byte
	for {
		n, err := c.link.Receive(batch[:])
		if err != nil {
			c.t.Fatal(err)
		}
		if n == 0 {
			return frames, broadcasts
		}
		for _, b := range batch[:n] {
			f, err := aoe.ParseFrame(b)
			if err != nil || f.Src() != mac {
				continue
			}
			frames++
			if f.Dst() == aoe.Broadcast {
				broadcasts++
			}
		}
	}
}

// TestAttachByUnicast: a node that is told where the target is attaches without a broadcast, one that is not, with one.
func TestAttachByUnicast(t *testing.T) {
	bridge(t, "proxy", "storage", "n1", "n2")
	startVblade(t, 0, make([]byte, 4*mib))
	p := realPool(t, 0)
	var v *volume.Volume
	eventually(t, "a volume", func() bool {
		var err error
		v, err = p.service.Create(t.Context(), p.request("data", 2*mib))
		return err == nil
	})
	packet, err := link.OpenPacket("storage", link.PacketConfig{Filter: link.FilterRequests(poolShelf)})
	must(t, err)
	wire := &counter{t: t, link: packet}
	t.Cleanup(func() { check(t, packet.Close()) })
	for i, tc := range []struct {
		host  string
		known bool
	}{{"n1", true}, {"n2", false}} {
		var published *volume.Publication
		eventually(t, "published", func() bool {
			published, err = p.service.Publish(t.Context(), v.ID.String(), tc.host, false)
			return err == nil
		})
		var macs []aoe.MAC
		for _, text := range published.MACs {
			mac, err := aoe.ParseMAC(text)
			must(t, err)
			macs = append(macs, mac)
		}
		if len(macs) != 1 {
			t.Fatalf("the publication says that the target is at %v", published.MACs)
		}
		if !tc.known {
			macs = nil
		}
		l, err := netlink.LinkByName(tc.host)
		must(t, err)
		d := node(t, uint8(i+1), tc.host, v, macs...)
		frames, broadcasts := wire.from(aoe.MAC(l.Attrs().HardwareAddr))
		t.Logf("%s attached, MAC known: %v; it sent %d frames, %d of them to everybody", tc.host, tc.known, frames, broadcasts)
		if (broadcasts == 0) != tc.known || frames == 0 {
			t.Errorf("%d broadcasts with the MAC known: %v", broadcasts, tc.known)
		}
		must(t, d.Detach(t.Context(), true))
		eventually(t, "taken off", func() bool { return p.service.Unpublish(t.Context(), v.ID.String(), tc.host) == nil })
	}
}
