// Package v1alpha1 holds the custom resources of aoe-csi.io/v1alpha1. AoEVolume and
// AoESlot are written by the controller only, an AoENode by its own node only.
//
// +kubebuilder:object:generate=true
// +groupName=aoe-csi.io
package v1alpha1

//go:generate go tool controller-gen object paths=. output:object:dir=.
//go:generate go tool controller-gen crd:maxDescLen=600 paths=. output:crd:dir=../../../charts/aoe-csi/crds
