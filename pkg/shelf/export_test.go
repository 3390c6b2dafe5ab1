package shelf

import (
	"context"

	"github.com/aoe-csi/aoe-csi/pkg/inband"
)

// Know is what Look does with the answers that it gets.
func (p *Proxy) Know(ctx context.Context, answers []inband.Answer) { p.know(ctx, answers) }
