package driver

import (
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// topologyOf is a place in CSI's words; nil where the segment is not known, which means everywhere.
func topologyOf(segment string) *csi.Topology {
	if segment == "" {
		return nil
	}
	return &csi.Topology{Segments: map[string]string{TopologyKey: segment}}
}

// segmentsOf lists the segments that fit a requirement, preferred ones first; none for no requirement. A requirement that
// names no segment of ours is volume.ErrNoSpace: nothing can be reached from such a place.
func segmentsOf(requirement *csi.TopologyRequirement) ([]string, error) {
	places := slices.Concat(requirement.GetPreferred(), requirement.GetRequisite())
	var segments []string
	for _, place := range places {
		segment, ok := place.GetSegments()[TopologyKey]
		if ok && !slices.Contains(segments, segment) {
			segments = append(segments, segment)
		}
	}
	if len(places) > 0 && len(segments) == 0 {
		return nil, fmt.Errorf("%w: the topology asked for has no %s", volume.ErrNoSpace, TopologyKey)
	}
	return segments, nil
}
