package provision

import (
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// shelfLabel lets people list a shelf's volumes.
const shelfLabel = "aoe-csi.io/shelf"

// objectName is the name of the resource for a CSI name, which may have any characters.
func objectName(name string) string {
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return hashedName(name)
	}
	return name
}

func newVolumeObject(r *volume.Record) *v1alpha1.AoEVolume {
	return &v1alpha1.AoEVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:       objectName(r.Name),
			Labels:     map[string]string{shelfLabel: strconv.Itoa(int(r.ID.Addr.Shelf))},
			Finalizers: []string{v1alpha1.AoEVolumeFinalizer},
		},
		Spec: specOf(r),
	}
}

func specOf(r *volume.Record) v1alpha1.AoEVolumeSpec {
	p := v1alpha1.AoEVolumeParameters{FSType: r.Parameters.FSType, MkfsOptions: r.Parameters.MkfsOptions, Frontend: r.Parameters.Frontend,
		OnlineExpansion: r.Parameters.OnlineExpansion, ShelfSelector: r.Parameters.ShelfSelector}
	if r.Parameters.Shelf != nil {
		shelf := int32(*r.Parameters.Shelf)
		p.Shelf = &shelf
	}
	if r.Parameters.DeadTime != 0 {
		p.DeadTime = &metav1.Duration{Duration: r.Parameters.DeadTime}
	}
	return v1alpha1.AoEVolumeSpec{
		Name:       r.Name,
		Target:     r.ID.Addr.String(),
		Generation: string(r.ID.Generation),
		Size:       *resource.NewQuantity(r.SizeBytes, resource.BinarySI),
		ShelfUUID:  r.ShelfUUID,
		Segment:    r.Segment,
		Claim:      r.Claim,
		Parameters: p,
	}
}

// setStatus writes the service's part of the status. Attachments and conditions are the
// status loop's.
func setStatus(st *v1alpha1.AoEVolumeStatus, r *volume.Record) {
	st.Phase, st.Message, st.Size, st.Admitted = string(r.Phase), r.Message, nil, nil
	if r.ShelfBytes > 0 {
		st.Size = resource.NewQuantity(r.ShelfBytes, resource.BinarySI)
	}
	for _, a := range r.Admitted {
		st.Admitted = append(st.Admitted, v1alpha1.AoEAdmission(a))
	}
}

// recordOf reads a resource. One without a status is new. One that was deleted while it
// was new is on its way out: nobody may begin to make it.
func recordOf(obj *v1alpha1.AoEVolume) (*volume.Record, error) {
	fail := func(what string, err error) (*volume.Record, error) {
		return nil, fmt.Errorf("AoEVolume %s: %s: %w", obj.Name, what, err)
	}
	addr, err := aoe.ParseAddr(obj.Spec.Target)
	if err != nil {
		return fail("target", err)
	}
	generation, err := volume.ParseGeneration(obj.Spec.Generation)
	if err != nil {
		return fail("generation", err)
	}
	r := &volume.Record{
		Name:      obj.Spec.Name,
		ID:        volume.ID{Addr: addr, Generation: generation},
		SizeBytes: obj.Spec.Size.Value(),
		Segment:   obj.Spec.Segment,
		ShelfUUID: obj.Spec.ShelfUUID,
		Claim:     obj.Spec.Claim,
		Phase:     volume.Phase(obj.Status.Phase),
		Message:   obj.Status.Message,
		Created:   obj.CreationTimestamp.Time,
		Version:   obj.ResourceVersion,
	}
	p := obj.Spec.Parameters
	r.Parameters = volume.Parameters{FSType: p.FSType, MkfsOptions: p.MkfsOptions, Frontend: p.Frontend, OnlineExpansion: p.OnlineExpansion,
		ShelfSelector: p.ShelfSelector}
	if p.Shelf != nil {
		if *p.Shelf < 0 || *p.Shelf > int32(aoe.MaxShelf) {
			return fail("parameters", fmt.Errorf("AoE has no shelf %d", *p.Shelf))
		}
		shelf := uint16(*p.Shelf)
		r.Parameters.Shelf = &shelf
	}
	if p.DeadTime != nil {
		r.Parameters.DeadTime = p.DeadTime.Duration
	}
	if obj.Status.Size != nil {
		r.ShelfBytes = obj.Status.Size.Value()
	}
	for _, a := range obj.Status.Admitted {
		r.Admitted = append(r.Admitted, volume.Admission(a))
	}
	if r.Phase == "" {
		r.Phase = volume.PhasePending
	}
	if r.Phase == volume.PhasePending && !obj.DeletionTimestamp.IsZero() {
		r.Phase = volume.PhaseDeleting
	}
	return r, nil
}

func newSlotObject(s volume.Slot) *v1alpha1.AoESlot {
	return &v1alpha1.AoESlot{
		ObjectMeta: metav1.ObjectMeta{
			Name:   s.Addr.String(),
			Labels: map[string]string{shelfLabel: strconv.Itoa(int(s.Addr.Shelf))},
		},
		Spec: v1alpha1.AoESlotSpec{VolumeName: s.VolumeName, Generation: string(s.Generation)},
	}
}

func slotOfObject(obj *v1alpha1.AoESlot) (*volume.Slot, error) {
	addr, err := aoe.ParseAddr(obj.Name)
	if err != nil {
		return nil, fmt.Errorf("AoESlot %s: %w", obj.Name, err)
	}
	return &volume.Slot{Addr: addr, VolumeName: obj.Spec.VolumeName, Generation: volume.Generation(obj.Spec.Generation)}, nil
}

func nodeSpecOf(n *volume.Node) v1alpha1.AoENodeSpec {
	spec := v1alpha1.AoENodeSpec{Segments: n.Segments, InitiatorUUID: n.InitiatorUUID, Version: n.Software}
	for _, i := range n.Interfaces {
		spec.Interfaces = append(spec.Interfaces, v1alpha1.AoEInterface{Name: i.Name, MAC: i.MAC, MTU: int32(i.MTU), Up: i.Up})
	}
	for _, f := range n.Frontends {
		spec.Frontends = append(spec.Frontends, v1alpha1.AoEFrontend(f))
	}
	return spec
}

func nodeStatusOf(n *volume.Node) v1alpha1.AoENodeStatus {
	var status v1alpha1.AoENodeStatus
	for _, a := range n.Attachments {
		status.Attachments = append(status.Attachments, v1alpha1.AoENodeAttachment{
			VolumeID: a.VolumeID, Device: a.Device, Frontend: a.Frontend, FrontendReason: a.FrontendReason,
			State: a.State, Message: a.Message, Since: optionalTime(a.Since), Paths: pathsOf(a.Paths),
		})
	}
	return status
}

func pathsOf(paths []volume.Path) []v1alpha1.AoEPath {
	var out []v1alpha1.AoEPath
	for _, p := range paths {
		out = append(out, v1alpha1.AoEPath(p))
	}
	return out
}

func nodeOf(obj *v1alpha1.AoENode) *volume.Node {
	n := &volume.Node{Name: obj.Name, Segments: obj.Spec.Segments, InitiatorUUID: obj.Spec.InitiatorUUID, Software: obj.Spec.Version}
	for _, i := range obj.Spec.Interfaces {
		n.Interfaces = append(n.Interfaces, volume.Interface{Name: i.Name, MAC: i.MAC, MTU: int(i.MTU), Up: i.Up})
	}
	for _, f := range obj.Spec.Frontends {
		n.Frontends = append(n.Frontends, volume.Frontend(f))
	}
	for _, a := range obj.Status.Attachments {
		at := volume.Attachment{
			VolumeID: a.VolumeID, Device: a.Device, Frontend: a.Frontend, FrontendReason: a.FrontendReason,
			State: a.State, Message: a.Message,
		}
		if a.Since != nil {
			at.Since = a.Since.Time
		}
		for _, p := range a.Paths {
			at.Paths = append(at.Paths, volume.Path(p))
		}
		n.Attachments = append(n.Attachments, at)
	}
	return n
}
