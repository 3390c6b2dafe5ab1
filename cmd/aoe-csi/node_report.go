package main

import (
	"context"
	"reflect"
	"time"

	"k8s.io/klog/v2"

	initiatorv1 "github.com/aoe-csi/aoe-csi/pkg/api/initiator/v1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// nodeReporter keeps the node's entry in the store like what the initiator says.
type nodeReporter struct {
	client  initiatorv1.InitiatorClient
	nodes   volume.Nodes
	name    string
	segment string

	gather time.Duration // how long changes are collected before they are written; 0: 1 s
	poll   time.Duration // how often interfaces and front ends are asked for; 0: 30 s
	retry  time.Duration // after a failure; 0: 2 s
}

// run reports until ctx ends. It returns no error: a report that cannot be written now is written later.
func (r *nodeReporter) run(ctx context.Context) error {
	orDefault := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	orDefault(&r.gather, time.Second)
	orDefault(&r.poll, 30*time.Second)
	orDefault(&r.retry, 2*time.Second)

	changed := make(chan []*initiatorv1.Attachment)
	watched := make(chan struct{})
	go func() { // ends with ctx
		defer close(watched)
		r.watch(ctx, changed)
	}()
	defer func() { <-watched }()

	var attachments []*initiatorv1.Attachment
	var written *volume.Node
	known := false // the initiator has sent a list, so that an empty one means "none"
	timer := time.NewTimer(r.poll)
	defer timer.Stop()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case attachments = <-changed:
			if !pending {
				pending = true
				timer.Reset(r.gather)
			}
			if !known { // nothing can be published to a node that is not reported: do not let that wait
				known = true
				timer.Reset(0)
			}
			continue
		case <-timer.C:
		}
		pending = false
		timer.Reset(r.poll)
		if !known {
			continue
		}
		next, err := r.report(ctx, attachments, written)
		if err != nil {
			klog.FromContext(ctx).Info("Cannot report the node, trying again", "node", r.name, "err", err.Error())
			timer.Reset(r.retry)
			continue
		}
		written = next
	}
}

// watch hands every list of attachments to changed, and follows the initiator through its restarts.
func (r *nodeReporter) watch(ctx context.Context, changed chan<- []*initiatorv1.Attachment) {
	quiet := false // the failure was logged already
	for ctx.Err() == nil {
		stream, err := r.client.Watch(ctx, &initiatorv1.WatchRequest{})
		for err == nil {
			var list *initiatorv1.ListResponse
			if list, err = stream.Recv(); err != nil {
				break
			}
			quiet = false
			select {
			case changed <- list.GetAttachments():
			case <-ctx.Done():
			}
		}
		if !quiet && ctx.Err() == nil {
			klog.FromContext(ctx).Info("Initiator does not answer, waiting for it", "err", err.Error())
			quiet = true
		}
		select {
		case <-time.After(r.retry):
		case <-ctx.Done():
		}
	}
}

// report writes the node's entry unless it is what was written last, and returns what is written now.
func (r *nodeReporter) report(ctx context.Context, attachments []*initiatorv1.Attachment, written *volume.Node) (*volume.Node, error) {
	has, err := r.client.GetNode(ctx, &initiatorv1.GetNodeRequest{})
	if err != nil {
		return written, err
	}
	node := r.describe(has, attachments)
	if reflect.DeepEqual(node, written) {
		return written, nil
	}
	if err := r.nodes.PutNode(ctx, node); err != nil {
		return written, err
	}
	return node, nil
}

func (r *nodeReporter) describe(has *initiatorv1.GetNodeResponse, attachments []*initiatorv1.Attachment) *volume.Node {
	node := &volume.Node{
		Name: r.name, Segments: []string{r.segment},
		InitiatorUUID: has.GetInitiatorUuid(), Software: has.GetVersion(),
	}
	for _, i := range has.GetInterfaces() {
		node.Interfaces = append(node.Interfaces, volume.Interface{Name: i.GetName(), MAC: i.GetMac(), MTU: int(i.GetMtu()), Up: i.GetUp()})
	}
	for _, f := range has.GetFrontends() {
		node.Frontends = append(node.Frontends, volume.Frontend{Name: f.GetName(), Available: f.GetAvailable(), Reason: f.GetReason(), LiveResize: f.GetLiveResize()})
	}
	for _, a := range attachments {
		node.Attachments = append(node.Attachments, nodeAttachment(a))
	}
	return node
}
