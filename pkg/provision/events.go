package provision

import (
	"k8s.io/klog/v2"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// EventType says how an event is meant.
type EventType string

// The two types of Kubernetes events.
const (
	EventNormal  EventType = "Normal"
	EventWarning EventType = "Warning"
)

// Recorder tells people what happened to a volume, on its claim and on itself. It never
// fails and does not wait.
type Recorder interface {
	Event(rec *volume.Record, kind EventType, reason, message string)
}

// logRecorder is the Recorder without Kubernetes.
type logRecorder struct{}

// Event implements Recorder.
func (logRecorder) Event(rec *volume.Record, kind EventType, reason, message string) {
	klog.Background().Info("Event", "volume", rec.Name, "type", kind, "reason", reason, "message", message)
}
