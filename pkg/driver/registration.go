package driver

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Registrar tells the kubelet where the node service is. The kubelet finds its socket by watching a directory.
type Registrar struct {
	registration.UnimplementedRegistrationServer
	// Endpoint is the path of the CSI socket as the kubelet sees it.
	Endpoint string
	refused  chan error
}

// NewRegistrar returns a registrar for a CSI socket at this path of the host.
func NewRegistrar(endpoint string) *Registrar {
	return &Registrar{Endpoint: endpoint, refused: make(chan error, 1)}
}

// Serve answers on the registration socket until ctx ends or the kubelet refuses the driver, which is an error: a restarted
// process asks again.
func (r *Registrar) Serve(ctx context.Context, socket string) error {
	listener, err := ListenUnix(socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var refused error
	watched := make(chan struct{})
	go func() { // ends with ctx
		defer close(watched)
		select {
		case refused = <-r.refused:
			cancel()
		case <-ctx.Done():
		}
	}()
	err = serve(ctx, server, listener)
	cancel()
	<-watched
	return errors.Join(err, refused)
}

// GetInfo says what there is to register.
func (r *Registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              Name,
		Endpoint:          r.Endpoint,
		SupportedVersions: []string{"1.0.0"}, // of CSI, as the kubelet compares it
	}, nil
}

// NotifyRegistrationStatus is how the kubelet answers.
func (r *Registrar) NotifyRegistrationStatus(ctx context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.GetPluginRegistered() {
		klog.FromContext(ctx).Info("Registered with the kubelet", "driver", Name, "endpoint", r.Endpoint)
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case r.refused <- fmt.Errorf("register %s with the kubelet: %s", Name, status.GetError()):
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}
