package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/link"
	"github.com/aoe-csi/aoe-csi/pkg/target"
)

const (
	// shelfLabel on a node makes it a shelf and says which.
	shelfLabel = "aoe-csi.io/shelf"
	// labelPatience is how long the API server may take at the start.
	labelPatience = 10 * time.Second
	// linkRetry is the pause before an interface that is down is tried again.
	linkRetry = time.Second
	// duplicateRetry is the pause before an interface with another shelf of our number on it is tried again.
	duplicateRetry = 30 * time.Second
)

// errNoCluster: the API server cannot be asked now.
var errNoCluster = errors.New("cluster does not answer")

// shelfOfNode reads the shelf number from a node's label.
func shelfOfNode(ctx context.Context, kubeconfig, node string) (uint16, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return 0, fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return 0, fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
	}
	ctx, cancel := context.WithTimeout(ctx, labelPatience)
	defer cancel()
	n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return 0, fmt.Errorf("shelf number: node %s does not exist", node)
	case err != nil:
		return 0, fmt.Errorf("shelf number of node %s: %w: %w", node, errNoCluster, err)
	}
	return shelfLabelValue(node, n.Labels)
}

// shelfLabelValue reads the label.
func shelfLabelValue(node string, labels map[string]string) (uint16, error) {
	value, ok := labels[shelfLabel]
	if !ok {
		return 0, fmt.Errorf("shelf number: node %s has no label %s; set it with: kubectl label node %s %s=N", node, shelfLabel, node, shelfLabel)
	}
	number, err := strconv.ParseUint(value, 10, 16)
	if err != nil || number > uint64(aoe.MaxShelf) {
		return 0, fmt.Errorf("shelf number: label %s=%s of node %s is not a number from 0 to %d", shelfLabel, value, node, aoe.MaxShelf)
	}
	return uint16(number), nil
}

// servedInterfaces checks named interfaces, or finds the network cards that are up.
func servedInterfaces(names []string) ([]string, error) {
	for _, name := range names {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	if len(names) > 0 {
		return names, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && len(i.HardwareAddr) == len(aoe.MAC{}) && isCard(i.Name) {
			names = append(names, i.Name)
		}
	}
	if len(names) == 0 {
		klog.InfoS("No network card is up: the shelf is served to this host only")
	}
	return names, nil
}

// serveInterface serves one interface until ctx ends; one that goes down is served again when it is back.
func serveInterface(ctx context.Context, s *target.Shelf, name string, served []string) error {
	down := false
	for ctx.Err() == nil {
		pause := linkRetry
		err := serveOnce(ctx, s, name, down, served)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, target.ErrDuplicate):
			klog.ErrorS(err, "Interface is not served", "interface", name)
			pause = duplicateRetry
		case errors.Is(err, link.ErrDown):
			if !down {
				klog.InfoS("Interface is down", "interface", name, "err", err)
			}
		default:
			return err
		}
		down = true
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// serveOnce opens the interface and serves it; one that was down is probed first, since it may be on another segment now.
func serveOnce(ctx context.Context, s *target.Shelf, name string, probe bool, served []string) error {
	if probe {
		if err := probeInterface(ctx, s, name, served); err != nil {
			return err
		}
	}
	l, err := link.OpenPacket(name, link.PacketConfig{Filter: link.FilterRequests(s.Number())})
	if err != nil {
		return err
	}
	klog.InfoS("Interface is served", "interface", name, "mac", aoe.MAC(l.MAC()).String(), "mtu", l.MTU())
	return s.Serve(ctx, l)
}
