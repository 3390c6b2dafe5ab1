package driver

import (
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// encodePublication writes what the node needs into a publish context.
func encodePublication(p *volume.Publication) map[string]string {
	context := map[string]string{
		ContextTarget:     p.Target.String(),
		ContextGeneration: string(p.Generation),
		ContextFrontend:   p.Frontend,
		ContextDeadTime:   p.DeadTime.String(),
	}
	if p.FrontendReason != "" {
		context[ContextReason] = p.FrontendReason
	}
	if len(p.MACs) > 0 {
		context[ContextMACs] = strings.Join(p.MACs, ",")
	}
	if p.ReadOnly {
		context[ContextReadOnly] = "true"
	}
	return context
}

// decodePublication reads what encodePublication wrote. Target and generation are required: without them the node cannot know
// that it has the right disk.
func decodePublication(context map[string]string) (volume.Publication, error) {
	var p volume.Publication
	wrong := func(key string, err error) (volume.Publication, error) {
		if context[key] == "" {
			return volume.Publication{}, invalid("publish context lacks %q", key)
		}
		return volume.Publication{}, invalid("publish context %q is %q: %v", key, context[key], err)
	}
	var err error
	if p.Target, err = aoe.ParseAddr(context[ContextTarget]); err != nil {
		return wrong(ContextTarget, err)
	}
	if p.Generation, err = volume.ParseGeneration(context[ContextGeneration]); err != nil {
		return wrong(ContextGeneration, err)
	}
	if p.Frontend, err = parseFrontend(context[ContextFrontend]); err != nil {
		return wrong(ContextFrontend, err)
	}
	if text := context[ContextDeadTime]; text != "" {
		if p.DeadTime, err = time.ParseDuration(text); err != nil || p.DeadTime < 0 {
			return volume.Publication{}, invalid("publish context %q is %q, not a time", ContextDeadTime, text)
		}
	}
	p.FrontendReason = context[ContextReason]
	if text := context[ContextMACs]; text != "" {
		p.MACs = strings.Split(text, ",")
	}
	p.ReadOnly = context[ContextReadOnly] == "true"
	return p, nil
}
