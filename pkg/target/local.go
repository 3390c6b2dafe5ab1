package target

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/link"
)

// ServeLocal serves initiators on the same host until ctx ends (nil) or the listener fails; it takes the listener.
func (s *Shelf) ServeLocal(ctx context.Context, listener *link.Listener) error {
	var peers sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	err := s.acceptLocal(ctx, listener, &peers)
	cancel()
	peers.Wait()
	if err = errors.Join(err, listener.Close()); err != nil {
		return fmt.Errorf("serve local initiators: %w", err)
	}
	return nil
}

func (s *Shelf) acceptLocal(ctx context.Context, listener *link.Listener, peers *sync.WaitGroup) (err error) {
	w, err := newWaker(listener.FD())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	stop := context.AfterFunc(ctx, w.wake)
	defer stop()
	for ctx.Err() == nil {
		if err := w.sleep(unix.POLLIN, func() bool { return ctx.Err() != nil }); err != nil {
			return err
		}
		peer, err := listener.Accept()
		switch {
		case errors.Is(err, link.ErrNobody):
			continue
		case err != nil:
			return err
		}
		peers.Go(func() { s.servePeer(ctx, peer) })
	}
	return nil
}

// servePeer serves one initiator until it goes.
func (s *Shelf) servePeer(ctx context.Context, peer link.Link) {
	klog.V(2).InfoS("Local initiator connected", "shelf", s.number)
	err := s.Serve(ctx, peer)
	if err != nil && !errors.Is(err, link.ErrDown) {
		klog.ErrorS(err, "Local initiator", "shelf", s.number)
		return
	}
	klog.V(2).InfoS("Local initiator gone", "shelf", s.number)
}
