package provision

import (
	"fmt"
	"slices"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// The front ends. frontendAuto leaves the choice to the driver.
const (
	frontendAuto = "auto"
	frontendUblk = "ublk"
	frontendNBD  = "nbd"
)

// modules are what a node needs for each front end.
var modules = map[string]string{frontendUblk: "ublk_drv", frontendNBD: "nbd"}

// frontendChoice is how a node makes the device, and why so.
type frontendChoice struct{ name, reason string }

// frontendFor picks the front end for a volume on a node. A choice that was made before stands while the node has the device or
// could still make it: an attached volume never switches.
func frontendFor(rec *volume.Record, node *volume.Node) (frontendChoice, error) {
	adm, handle := rec.Admission(node.Name), rec.ID.String()
	if i := slices.IndexFunc(node.Attachments, func(a volume.Attachment) bool { return a.VolumeID == handle }); i >= 0 {
		if has := node.Attachments[i].Frontend; has != "" {
			if adm != nil && adm.Frontend == has {
				return frontendChoice{has, adm.FrontendReason}, nil
			}
			return frontendChoice{has, "the node has the device already"}, nil
		}
	}
	if adm != nil && adm.Frontend != "" && adm.Frontend != frontendAuto {
		if _, why := usable(adm.Frontend, rec.Parameters, node); why == "" {
			return frontendChoice{adm.Frontend, adm.FrontendReason}, nil
		}
	}
	return chooseFrontend(rec.Parameters, node)
}

// chooseFrontend picks what the StorageClass says, or the best that the node has: ublk, or nbd where ublk does not do. A node
// that tells of none, as one with an older plugin, decides by itself. The error says what is missing, and what to do.
func chooseFrontend(p volume.Parameters, node *volume.Node) (frontendChoice, error) {
	wanted := p.Frontend
	if wanted == "" {
		wanted = frontendAuto
	}
	candidates, reason := []string{wanted}, "the StorageClass asks for it"
	if len(node.Frontends) == 0 {
		if wanted == frontendAuto {
			reason = "the node has not told which front ends it has"
		}
		return frontendChoice{wanted, reason}, nil
	}
	if wanted == frontendAuto {
		candidates, reason = []string{frontendUblk, frontendNBD}, "auto"
	}
	var passed, todo []string // what was passed over and why, and what would help
	for _, name := range candidates {
		help, why := usable(name, p, node)
		if why == "" {
			return frontendChoice{name, strings.Join(append([]string{reason}, passed...), "; ")}, nil
		}
		passed = append(passed, "not "+name+": "+why)
		todo = append(todo, help)
	}
	return frontendChoice{}, fmt.Errorf("%w: node %s cannot make a block device (front end %s): %s; on that node: %s",
		volume.ErrPrecondition, node.Name, wanted, strings.Join(passed, "; "), strings.Join(todo, ", or "))
}

// usable says why a front end does not do for a volume on this node, and what would help; why is empty if it does.
func usable(name string, p volume.Parameters, node *volume.Node) (help, why string) {
	load := "modprobe " + modules[name]
	i := slices.IndexFunc(node.Frontends, func(f volume.Frontend) bool { return f.Name == name })
	if i < 0 {
		return load + " and an initiator that knows it", "its initiator does not know it"
	}
	f := node.Frontends[i]
	switch {
	case !f.Available:
		return load, f.Reason
	case p.OnlineExpansion && !f.LiveResize && name != frontendNBD: // NBD always could, also where an older initiator does not say so
		return "a newer kernel", "it cannot grow a device in use there, which onlineExpansion asks for"
	}
	return "", ""
}
