package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AoESlot is named after an AoE address, e<shelf>.<slot>. Its creation is what owns the
// address, so that two volumes never have the same one.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=aoeslots,singular=aoeslot
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volumeName`
// +kubebuilder:printcolumn:name="Generation",type=string,JSONPath=`.spec.generation`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AoESlot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AoESlotSpec `json:"spec"`
}

// AoESlotList is a list of AoESlot.
//
// +kubebuilder:object:root=true
type AoESlotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AoESlot `json:"items"`
}

// AoESlotSpec says who owns the address.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the owner of a slot does not change"
type AoESlotSpec struct {
	// VolumeName is the name of the CSI request behind the AoEVolume.
	VolumeName string `json:"volumeName"`
	// Generation of that volume.
	// +kubebuilder:validation:Pattern=`^[a-z2-7]{16}$`
	Generation string `json:"generation"`
}
