package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AoENode is named after a node and says what that node has. Only the node itself writes it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=aoen,path=aoenodes,singular=aoenode
// +kubebuilder:printcolumn:name="Segments",type=string,JSONPath=`.spec.segments`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.spec.interfaces[*].name`
// +kubebuilder:printcolumn:name="Devices",type=string,JSONPath=`.status.attachments[*].device`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AoENode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AoENodeSpec   `json:"spec"`
	Status AoENodeStatus `json:"status,omitempty"`
}

// AoENodeList is a list of AoENode.
//
// +kubebuilder:object:root=true
type AoENodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AoENode `json:"items"`
}

// AoENodeSpec is what the node has.
type AoENodeSpec struct {
	// Segments are values of topology.aoe-csi.io/segment that the node can reach.
	// +optional
	// +listType=set
	Segments []string `json:"segments,omitempty"`
	// Interfaces that the initiator uses; the shelf admits their MACs.
	// +optional
	// +listType=atomic
	Interfaces []AoEInterface `json:"interfaces,omitempty"`
	// Frontends are the ways to make a block device.
	// +optional
	// +listType=atomic
	Frontends []AoEFrontend `json:"frontends,omitempty"`
	// +optional
	InitiatorUUID string `json:"initiatorUUID,omitempty"`
	// Version of the software on the node.
	// +optional
	Version string `json:"version,omitempty"`
}

// AoENodeStatus is what the node does.
type AoENodeStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=volumeID
	Attachments []AoENodeAttachment `json:"attachments,omitempty"`
}

// AoEInterface is a network interface of a node.
type AoEInterface struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	// +optional
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	Up bool `json:"up,omitempty"`
}

// AoEFrontend is a way to make a block device.
type AoEFrontend struct {
	Name      string `json:"name"`
	Available bool   `json:"available"`
	// Reason why it is not available, or what is known of it.
	// +optional
	Reason string `json:"reason,omitempty"`
	// LiveResize says that its devices can grow while they are in use.
	// +optional
	LiveResize bool `json:"liveResize,omitempty"`
}

// AoENodeAttachment is a device that the node has.
type AoENodeAttachment struct {
	// VolumeID is the CSI volume handle, or what the volume was attached as by hand.
	VolumeID string `json:"volumeID"`
	// +optional
	Device string `json:"device,omitempty"`
	// +optional
	Frontend string `json:"frontend,omitempty"`
	// +optional
	FrontendReason string `json:"frontendReason,omitempty"`
	// State is attaching, live, stalled, failed or detaching.
	// +optional
	State string `json:"state,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// +optional
	// +listType=atomic
	Paths []AoEPath `json:"paths,omitempty"`
}
