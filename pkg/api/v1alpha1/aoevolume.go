package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AoEVolumeFinalizer keeps the intent until the shelf has given up the data: deleting an
// AoEVolume by hand must not leak a LUN.
const AoEVolumeFinalizer = "aoe-csi.io/lun"

// Conditions of an AoEVolume.
const (
	ConditionProvisioned = "Provisioned" // the shelf has the data
	ConditionAdmitted    = "Admitted"    // a node may use it
	ConditionAttached    = "Attached"    // the admitted node has it as a device
	ConditionHealthy     = "Healthy"     // the device's I/O is not stalled
)

// AoEVolume is the intent to have a volume, written before the shelf is asked, and what
// became of it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=aoev,path=aoevolumes,singular=aoevolume
// +kubebuilder:printcolumn:name="Shelf.Slot",type=string,JSONPath=`.spec.target`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.spec.size`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.admitted[*].node`
// +kubebuilder:printcolumn:name="Device",type=string,JSONPath=`.status.attachments[*].device`
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.spec.claim`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AoEVolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AoEVolumeSpec   `json:"spec"`
	Status AoEVolumeStatus `json:"status,omitempty"`
}

// AoEVolumeList is a list of AoEVolume.
//
// +kubebuilder:object:root=true
type AoEVolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AoEVolume `json:"items"`
}

// AoEVolumeSpec is the intent.
type AoEVolumeSpec struct {
	// Name of the CSI request that asked for the volume.
	Name string `json:"name"`
	// Target is the AoE address, e<shelf>.<slot>.
	// +kubebuilder:validation:Pattern=`^e[0-9]{1,5}\.[0-9]{1,3}$`
	Target string `json:"target"`
	// Generation is the identity of the data: ATA serial number and config string of the LUN.
	// +kubebuilder:validation:Pattern=`^[a-z2-7]{16}$`
	Generation string `json:"generation"`
	// Size that the volume is to have.
	Size resource.Quantity `json:"size"`
	// ShelfUUID is the shelf that was chosen; another one with its number is refused.
	// +optional
	ShelfUUID string `json:"shelfUUID,omitempty"`
	// Segment is the value of topology.aoe-csi.io/segment where the volume can be reached.
	// +optional
	Segment string `json:"segment,omitempty"`
	// Claim that asked for the volume, namespace/name.
	// +optional
	Claim string `json:"claim,omitempty"`
	// Parameters of the StorageClass.
	// +optional
	Parameters AoEVolumeParameters `json:"parameters,omitempty"`
}

// AoEVolumeParameters are those of the StorageClass, as they were when the volume was made.
type AoEVolumeParameters struct {
	// Shelf that was asked for; absent: any.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65534
	Shelf *int32 `json:"shelf,omitempty"`
	// ShelfSelector chose among shelves by their labels.
	// +optional
	ShelfSelector string `json:"shelfSelector,omitempty"`
	// +optional
	FSType string `json:"fsType,omitempty"`
	// +optional
	MkfsOptions string `json:"mkfsOptions,omitempty"`
	// Frontend is auto, ublk or nbd.
	// +optional
	Frontend string `json:"frontend,omitempty"`
	// DeadTime after which I/O without an answer fails; absent or 0: never.
	// +optional
	DeadTime *metav1.Duration `json:"deadTime,omitempty"`
	// OnlineExpansion asks for a front end whose devices grow while they are in use.
	// +optional
	OnlineExpansion bool `json:"onlineExpansion,omitempty"`
}

// AoEVolumeStatus is what became of the intent.
type AoEVolumeStatus struct {
	// Phase is Pending, Creating, Ready or Deleting.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Size that the shelf has made; less than in the spec while the volume grows.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Message says why the volume is not further.
	// +optional
	Message string `json:"message,omitempty"`
	// Admitted nodes: those that the shelf serves, or may serve.
	// +optional
	// +listType=map
	// +listMapKey=node
	Admitted []AoEAdmission `json:"admitted,omitempty"`
	// Attachments are the devices that nodes report.
	// +optional
	// +listType=map
	// +listMapKey=node
	Attachments []AoEAttachment `json:"attachments,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AoEAdmission is a node that may use the volume.
type AoEAdmission struct {
	Node string `json:"node"`
	// MACs that the shelf lets through for this node.
	// +optional
	MACs []string `json:"macs,omitempty"`
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
	// Confirmed by the shelf; false: it was asked, or is about to be.
	// +optional
	Confirmed bool `json:"confirmed,omitempty"`
	// Frontend that the node was told to use: ublk, nbd, or auto if its initiator chooses.
	// +optional
	Frontend string `json:"frontend,omitempty"`
	// FrontendReason says why this one.
	// +optional
	FrontendReason string `json:"frontendReason,omitempty"`
}

// AoEAttachment is a device that a node has for the volume.
type AoEAttachment struct {
	Node string `json:"node"`
	// Device on that node, such as /dev/nbd0.
	Device string `json:"device"`
	// +optional
	Frontend string `json:"frontend,omitempty"`
	// FrontendReason says why this front end.
	// +optional
	FrontendReason string `json:"frontendReason,omitempty"`
	// State is attaching, live, stalled, failed or detaching.
	// +optional
	State string `json:"state,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// Since when it is in this state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// +optional
	// +listType=atomic
	Paths []AoEPath `json:"paths,omitempty"`
}

// AoEPath is a way from a node to the target.
type AoEPath struct {
	// Interface of the node, or "local" for a target on the same host.
	Interface string `json:"interface"`
	// +optional
	RemoteMAC string `json:"remoteMAC,omitempty"`
	// State is up, probing or down.
	// +optional
	State string `json:"state,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
}
