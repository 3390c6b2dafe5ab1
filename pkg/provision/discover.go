package provision

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// shelfPort is the name of the shelf API's port in a Service; a Service with one port may
// call it anything.
const shelfPort = "shelf"

// ServiceSource returns a source that names the end points of a headless Service that it
// says are ready. The Service decides what that means: one that publishes addresses that
// are not ready keeps a shelf that is down known, one that does not leaves out the old pod
// of a shelf that has moved.
func ServiceSource(c kubernetes.Interface, namespace, service string) Source {
	return func(ctx context.Context) ([]string, error) {
		slices, err := c.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=" + service,
		})
		if err != nil {
			return nil, fmt.Errorf("list shelves of service %s/%s: %w", namespace, service, err)
		}
		var addresses []string
		for i := range slices.Items {
			addresses = append(addresses, addressesOf(&slices.Items[i])...)
		}
		return addresses, nil
	}
}

func addressesOf(slice *discoveryv1.EndpointSlice) []string {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	var addresses []string
	for _, port := range slice.Ports {
		named := port.Name != nil && *port.Name == shelfPort
		tcp := port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP
		if port.Port == nil || !tcp || len(slice.Ports) > 1 && !named {
			continue
		}
		for _, end := range slice.Endpoints {
			if ready := end.Conditions.Ready; ready != nil && !*ready {
				continue
			}
			for _, ip := range end.Addresses {
				addresses = append(addresses, "tcp://"+net.JoinHostPort(ip, strconv.Itoa(int(*port.Port))))
			}
		}
	}
	return addresses
}
