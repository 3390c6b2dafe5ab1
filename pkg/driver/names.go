package driver

// Names that Kubernetes objects carry.
const (
	// Name is the driver's name in CSIDriver, StorageClass and PersistentVolume.
	Name = "driver.aoe-csi.io"
	// TopologyKey says on which Ethernet segment a node or volume is.
	TopologyKey = "topology.aoe-csi.io/segment"
)

// Keys of a publish context: what ControllerPublishVolume tells the node. The context is
// authoritative; the address in the volume handle is a hint.
const (
	ContextTarget     = "target"     // shelf.slot: "e7.3"
	ContextGeneration = "generation" // identity that the target has to prove
	ContextFrontend   = "frontend"   // "auto", "ublk" or "nbd"
	ContextReason     = "frontendReason"
	ContextDeadTime   = "deadTime" // "1m30s"; "0s": wait for ever
	ContextReadOnly   = "readOnly" // "true", or absent
	ContextMACs       = "macs"     // where the target is, with commas between; may be absent
)

// Keys of a volume context: what CreateVolume tells the node.
const (
	ContextFSType      = "fsType"      // file system to make if the volume is blank
	ContextMkfsOptions = "mkfsOptions" // for mkfs, split at spaces
)

// Parameters of a StorageClass.
const (
	ParameterShelf       = "shelf"                     // number of the shelf; absent: the one with most room
	ParameterShelves     = "shelfSelector"             // by labels of shelves; absent: any
	ParameterFSType      = "csi.storage.k8s.io/fstype" // "ext4" (default) or "xfs"
	ParameterMkfsOptions = "mkfsOptions"
	ParameterFrontend    = "frontend"        // "auto" (default), "ublk" or "nbd"
	ParameterExpansion   = "onlineExpansion" // "true": a front end whose devices grow while they are in use
	ParameterDeadTime    = "deadTime"        // after which I/O without an answer fails; "0" (default): never
)

// Parameters that csi-provisioner adds with --extra-create-metadata.
const (
	parameterClaimName      = "csi.storage.k8s.io/pvc/name"
	parameterClaimNamespace = "csi.storage.k8s.io/pvc/namespace"
	parameterVolumeName     = "csi.storage.k8s.io/pv/name"
)

// Keys that the kubelet adds to the volume context because CSIDriver says podInfoOnMount.
const (
	podName      = "csi.storage.k8s.io/pod.name"
	podNamespace = "csi.storage.k8s.io/pod.namespace"
	podUID       = "csi.storage.k8s.io/pod.uid"
)

// maxVolumesPerNode is how many volumes one initiator serves within its memory budget.
const maxVolumesPerNode = 256
