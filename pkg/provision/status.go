package provision

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

// attachmentsOf collects what nodes say of the volume, in the order of their names.
func attachmentsOf(vol *v1alpha1.AoEVolume, nodes []v1alpha1.AoENode) []v1alpha1.AoEAttachment {
	handle := vol.Spec.Target + "-" + vol.Spec.Generation
	var found []v1alpha1.AoEAttachment
	for i := range nodes {
		for _, a := range nodes[i].Status.Attachments {
			if a.VolumeID != handle {
				continue
			}
			found = append(found, v1alpha1.AoEAttachment{
				Node: nodes[i].Name, Device: a.Device, Frontend: a.Frontend, FrontendReason: a.FrontendReason,
				State: a.State, Message: a.Message, Since: a.Since, Paths: a.Paths,
			})
		}
	}
	slices.SortFunc(found, func(a, b v1alpha1.AoEAttachment) int { return strings.Compare(a.Node, b.Node) })
	return found
}

// summarize brings attachments and conditions of the status up to date, in words that
// need no knowledge of the driver.
func summarize(vol *v1alpha1.AoEVolume, nodes []v1alpha1.AoENode) {
	st := &vol.Status
	st.Attachments = attachmentsOf(vol, nodes)
	for _, c := range []metav1.Condition{provisioned(vol), admitted(vol), attached(vol), healthy(vol)} {
		c.ObservedGeneration = vol.Generation
		meta.SetStatusCondition(&st.Conditions, c)
	}
}

func condition(kind string, status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func provisioned(vol *v1alpha1.AoEVolume) metav1.Condition {
	const kind = v1alpha1.ConditionProvisioned
	why := ""
	if vol.Status.Message != "" {
		why = ": " + vol.Status.Message
	}
	switch vol.Status.Phase {
	case "Ready":
		if !vol.DeletionTimestamp.IsZero() {
			return condition(kind, metav1.ConditionTrue, "DeletedByHand",
				"somebody deleted this object, which deletes nothing: delete the claim %s", vol.Spec.Claim)
		}
		if have := vol.Status.Size; have != nil && have.Cmp(vol.Spec.Size) < 0 {
			return condition(kind, metav1.ConditionTrue, "Growing", "the shelf has it as %s, %s; it is to grow to %s%s",
				vol.Spec.Target, humanSize(have.Value()), humanSize(vol.Spec.Size.Value()), why)
		}
		return condition(kind, metav1.ConditionTrue, "LunReady", "the shelf has it as %s, %s; identity %s",
			vol.Spec.Target, humanSize(vol.Spec.Size.Value()), vol.Spec.Generation)
	case "Deleting":
		return condition(kind, metav1.ConditionFalse, "Deleting", "the data at %s is being removed%s", vol.Spec.Target, why)
	case "Creating":
		return condition(kind, metav1.ConditionFalse, "Creating", "the shelf was asked for %s%s", vol.Spec.Target, why)
	}
	return condition(kind, metav1.ConditionFalse, "Pending", "%s is chosen, the shelf was not asked yet%s", vol.Spec.Target, why)
}

func admitted(vol *v1alpha1.AoEVolume) metav1.Condition {
	const kind = v1alpha1.ConditionAdmitted
	var sure, unsure []string
	for _, a := range vol.Status.Admitted {
		if a.Confirmed {
			sure = append(sure, "node "+a.Node)
		} else {
			unsure = append(unsure, "node "+a.Node)
		}
	}
	switch {
	case len(unsure) > 0:
		return condition(kind, metav1.ConditionUnknown, "ShelfNotConfirmed",
			"%s may be able to use it: the shelf has not confirmed the last change", strings.Join(unsure, ", "))
	case len(sure) > 0:
		return condition(kind, metav1.ConditionTrue, "NodeAdmitted", "the shelf lets %s use it, and nobody else", strings.Join(sure, ", "))
	}
	return condition(kind, metav1.ConditionFalse, "NoNode", "the shelf lets no node use it")
}

func attached(vol *v1alpha1.AoEVolume) metav1.Condition {
	const kind = v1alpha1.ConditionAttached
	if len(vol.Status.Attachments) == 0 {
		if len(vol.Status.Admitted) > 0 {
			return condition(kind, metav1.ConditionFalse, "NoDevice", "node %s has not made a device of it", vol.Status.Admitted[0].Node)
		}
		return condition(kind, metav1.ConditionFalse, "NoDevice", "no node has it as a device")
	}
	var parts []string
	for i := range vol.Status.Attachments {
		a := &vol.Status.Attachments[i]
		text := fmt.Sprintf("node %s has it as %s through %s", a.Node, orUnknown(a.Device), orUnknown(a.Frontend))
		if a.FrontendReason != "" {
			text += " (" + a.FrontendReason + ")"
		}
		if !slices.ContainsFunc(vol.Status.Admitted, func(adm v1alpha1.AoEAdmission) bool { return adm.Node == a.Node }) {
			text += ", but the shelf lets it in no more"
		}
		parts = append(parts, text)
	}
	return condition(kind, metav1.ConditionTrue, "Device", "%s", strings.Join(parts, "; "))
}

// Reasons of the condition Healthy that people are told of.
const (
	reasonLive    = "Live"
	reasonStalled = "Stalled"
	reasonFailed  = "Failed"
)

func healthy(vol *v1alpha1.AoEVolume) metav1.Condition {
	const kind = v1alpha1.ConditionHealthy
	if len(vol.Status.Attachments) == 0 {
		return condition(kind, metav1.ConditionUnknown, "NotAttached", "nobody uses it")
	}
	status, reason := metav1.ConditionTrue, reasonLive
	var parts []string
	for i := range vol.Status.Attachments {
		a := &vol.Status.Attachments[i]
		text := fmt.Sprintf("node %s: %s over %s", a.Node, orUnknown(a.State), pathText(a.Paths))
		if a.Message != "" {
			text += ": " + a.Message
		}
		parts = append(parts, text)
		switch a.State {
		case "live":
		case "failed":
			status, reason = metav1.ConditionFalse, reasonFailed
		default:
			if reason != reasonFailed {
				status, reason = metav1.ConditionFalse, reasonOf(a.State)
			}
		}
	}
	return condition(kind, status, reason, "%s", strings.Join(parts, "; "))
}

// reasonOf makes a condition's reason of an attachment's state.
func reasonOf(state string) string {
	switch state {
	case "stalled":
		return reasonStalled
	case "attaching":
		return "Attaching"
	case "detaching":
		return "Detaching"
	}
	return "Unknown"
}

func pathText(paths []v1alpha1.AoEPath) string {
	var parts []string
	for _, p := range paths {
		text := p.Interface
		if p.RemoteMAC != "" {
			text += " to " + p.RemoteMAC
		}
		if p.State != "up" {
			text += " (" + orUnknown(p.State) + ")"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "no path"
	}
	return strings.Join(parts, ", ")
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
