//go:build integration

package segment

import (
	"context"
	"fmt"
	"os"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

// Target is a storage host with one managed LUN. Its exported methods are what the test can ask it for.
type Target struct {
	slow  bool // its disk
	shelf *target.Shelf
}

// Start serves the interfaces, and makes the LUN.
func (p *Target) Start(args StartArgs, macs *[]aoe.MAC) (err error) {
	if *macs, err = setUp(args.Interfaces); err != nil {
		return err
	}
	number := lunAddr.Shelf
	config := target.Config{Dir: args.Dir, Number: &number}
	if p.slow {
		config.Host = new(slowHost)
	}
	if p.shelf, err = target.Open(config); err != nil {
		return err
	}
	for _, name := range args.Interfaces {
		l, err := link.OpenPacket(name, link.PacketConfig{Filter: link.FilterRequests(number)})
		if err != nil {
			return err
		}
		go func() {
			err := p.shelf.Serve(context.Background(), l)
			fmt.Fprintln(os.Stderr, "serve:", err) // it is to end with the process
		}()
	}
	_, err = p.shelf.Create(context.Background(), target.CreateRequest{
		Slot: lunAddr.Slot, Generation: generation, Name: "test", SizeBytes: lunBytes, Access: target.ManagedAccess,
	})
	return err
}

// Admit lets a node in.
func (p *Target) Admit(a target.Admission, lun *target.LUN) (err error) {
	*lun, err = p.shelf.Admit(context.Background(), lunAddr.Slot, generation, a)
	return err
}

// Expel takes a node off.
func (p *Target) Expel(node string, lun *target.LUN) (err error) {
	*lun, err = p.shelf.Expel(context.Background(), lunAddr.Slot, generation, node)
	return err
}

// Get is the LUN as it is.
func (p *Target) Get(_ struct{}, lun *target.LUN) (err error) {
	*lun, err = p.shelf.Get(lunAddr.Slot, generation)
	return err
}

// Stats are the shelf's counters.
func (p *Target) Stats(_ struct{}, stats *target.Stats) error {
	*stats = p.shelf.Stats()
	return nil
}
