package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of every resource in this package.
var GroupVersion = schema.GroupVersion{Group: "aoe-csi.io", Version: "v1alpha1"}

// AddToScheme registers the resources in a client's scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&AoEVolume{}, &AoEVolumeList{},
		&AoESlot{}, &AoESlotList{},
		&AoENode{}, &AoENodeList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
