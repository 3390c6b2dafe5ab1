package provision

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// KubernetesStore keeps intents as AoEVolume, AoESlot and AoENode resources. Several
// controllers may use it at the same time: every write names the version it is based on.
type KubernetesStore struct {
	client client.Client
}

var _ volume.Store = (*KubernetesStore)(nil)

// NewKubernetesStore returns a store over a client that knows v1alpha1 and reads from the
// API server, not from a cache: a decision on an old answer could admit two nodes.
func NewKubernetesStore(c client.Client) *KubernetesStore { return &KubernetesStore{client: c} }

// CreateVolume implements volume.Store.
func (s *KubernetesStore) CreateVolume(ctx context.Context, r *volume.Record) error {
	obj := newVolumeObject(r)
	if err := s.client.Create(ctx, obj); err != nil {
		if apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%w: AoEVolume %s", volume.ErrExists, obj.Name)
		}
		return fmt.Errorf("create AoEVolume %s: %w", obj.Name, err)
	}
	r.Version, r.Created = obj.ResourceVersion, obj.CreationTimestamp.Time
	return nil
}

// GetVolume implements volume.Store.
func (s *KubernetesStore) GetVolume(ctx context.Context, name string) (*volume.Record, error) {
	obj, err := s.volumeObject(ctx, name)
	if err != nil {
		return nil, err
	}
	return recordOf(obj)
}

func (s *KubernetesStore) volumeObject(ctx context.Context, name string) (*v1alpha1.AoEVolume, error) {
	obj := &v1alpha1.AoEVolume{}
	if err := s.get(ctx, objectName(name), "AoEVolume", obj); err != nil {
		return nil, err
	}
	if obj.Spec.Name != name {
		return nil, fmt.Errorf("AoEVolume %s is of %q, not of %q", obj.Name, obj.Spec.Name, name)
	}
	return obj, nil
}

// get reads an object; volume.ErrNotFound if there is none.
func (s *KubernetesStore) get(ctx context.Context, name, kind string, into client.Object) error {
	err := s.client.Get(ctx, client.ObjectKey{Name: name}, into)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: %s %s", volume.ErrNotFound, kind, name)
	}
	if err != nil {
		return fmt.Errorf("get %s %s: %w", kind, name, err)
	}
	return nil
}

// ListVolumes implements volume.Store.
func (s *KubernetesStore) ListVolumes(ctx context.Context) ([]volume.Record, error) {
	var list v1alpha1.AoEVolumeList
	if err := s.client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list AoEVolumes: %w", err)
	}
	records := make([]volume.Record, 0, len(list.Items))
	for i := range list.Items {
		r, err := recordOf(&list.Items[i])
		if err != nil {
			return nil, err
		}
		records = append(records, *r)
	}
	sortRecords(records)
	return records, nil
}

// UpdateVolume implements volume.Store. Intent and outcome are two writes to the API
// server, the intent first.
func (s *KubernetesStore) UpdateVolume(ctx context.Context, r *volume.Record) error {
	obj, err := s.current(ctx, r)
	if err != nil {
		return err
	}
	if spec := specOf(r); !equality.Semantic.DeepEqual(obj.Spec, spec) {
		obj.Spec = spec
		if err := s.client.Update(ctx, obj); err != nil {
			return stale(err, "update AoEVolume", obj.Name)
		}
	}
	setStatus(&obj.Status, r)
	if err := s.client.Status().Update(ctx, obj); err != nil {
		return stale(err, "update status of AoEVolume", obj.Name)
	}
	r.Version = obj.ResourceVersion
	return nil
}

// current returns the object if it still is what the record was read from.
func (s *KubernetesStore) current(ctx context.Context, r *volume.Record) (*v1alpha1.AoEVolume, error) {
	obj := &v1alpha1.AoEVolume{}
	if err := s.client.Get(ctx, client.ObjectKey{Name: objectName(r.Name)}, obj); err != nil {
		return nil, stale(err, "get AoEVolume", objectName(r.Name))
	}
	if obj.ResourceVersion != r.Version || obj.Spec.Generation != string(r.ID.Generation) {
		return nil, fmt.Errorf("%w: AoEVolume %s", volume.ErrStale, obj.Name)
	}
	return obj, nil
}

// stale turns "somebody else was faster" into volume.ErrStale.
func stale(err error, op, name string) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: %s %s: %w", volume.ErrStale, op, name, err)
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}

// DeleteVolume implements volume.Store. The deletion is asked for on the condition that
// nothing has changed; only then the finalizer, which keeps a deletion by hand from
// leaking a LUN, is taken off.
func (s *KubernetesStore) DeleteVolume(ctx context.Context, r *volume.Record) error {
	obj := &v1alpha1.AoEVolume{}
	err := s.client.Get(ctx, client.ObjectKey{Name: objectName(r.Name)}, obj)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get AoEVolume %s: %w", objectName(r.Name), err)
	}
	if obj.ResourceVersion != r.Version || obj.Spec.Generation != string(r.ID.Generation) {
		return fmt.Errorf("%w: AoEVolume %s", volume.ErrStale, obj.Name)
	}
	if obj.DeletionTimestamp.IsZero() {
		condition := client.Preconditions{UID: &obj.UID, ResourceVersion: &obj.ResourceVersion}
		if err := s.client.Delete(ctx, obj, condition); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return stale(err, "delete AoEVolume", obj.Name)
		}
	}
	return s.letGo(ctx, obj)
}

// letGo takes the finalizer off. From here on nothing is decided any more, so a write in
// between is no reason to stop.
func (s *KubernetesStore) letGo(ctx context.Context, deleted *v1alpha1.AoEVolume) error {
	var err error
	for range staleRetries {
		obj := &v1alpha1.AoEVolume{}
		err = s.client.Get(ctx, client.ObjectKeyFromObject(deleted), obj)
		if apierrors.IsNotFound(err) || err == nil && obj.UID != deleted.UID {
			return nil
		}
		if err == nil {
			if !controllerutil.RemoveFinalizer(obj, v1alpha1.AoEVolumeFinalizer) {
				return nil
			}
			err = s.client.Update(ctx, obj)
		}
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			break
		}
	}
	return fmt.Errorf("release AoEVolume %s: %w", deleted.Name, err)
}

// ClaimSlot implements volume.Store.
func (s *KubernetesStore) ClaimSlot(ctx context.Context, slot volume.Slot) error {
	obj := newSlotObject(slot)
	err := s.client.Create(ctx, obj)
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create AoESlot %s: %w", obj.Name, err)
	}
	have, err := s.GetSlot(ctx, slot.Addr)
	if err != nil {
		return err
	}
	if *have != slot {
		return fmt.Errorf("%w: slot %s is volume %s's", volume.ErrExists, slot.Addr, have.VolumeName)
	}
	return nil
}

// GetSlot implements volume.Store.
func (s *KubernetesStore) GetSlot(ctx context.Context, addr aoe.Addr) (*volume.Slot, error) {
	obj := &v1alpha1.AoESlot{}
	if err := s.get(ctx, addr.String(), "AoESlot", obj); err != nil {
		return nil, err
	}
	return slotOfObject(obj)
}

// ListSlots implements volume.Store.
func (s *KubernetesStore) ListSlots(ctx context.Context) ([]volume.Slot, error) {
	var list v1alpha1.AoESlotList
	if err := s.client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list AoESlots: %w", err)
	}
	slots := make([]volume.Slot, 0, len(list.Items))
	for i := range list.Items {
		slot, err := slotOfObject(&list.Items[i])
		if err != nil {
			return nil, err
		}
		slots = append(slots, *slot)
	}
	return slots, nil
}

// ReleaseSlot implements volume.Store.
func (s *KubernetesStore) ReleaseSlot(ctx context.Context, slot volume.Slot) error {
	obj := &v1alpha1.AoESlot{}
	err := s.client.Get(ctx, client.ObjectKey{Name: slot.Addr.String()}, obj)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get AoESlot %s: %w", slot.Addr, err)
	}
	if have, err := slotOfObject(obj); err != nil || *have != slot {
		return err
	}
	err = s.client.Delete(ctx, obj, client.Preconditions{UID: &obj.UID})
	// A conflict means that the slot was released and claimed by another volume meanwhile.
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("delete AoESlot %s: %w", slot.Addr, err)
}

// GetNode implements volume.Store.
func (s *KubernetesStore) GetNode(ctx context.Context, name string) (*volume.Node, error) {
	obj := &v1alpha1.AoENode{}
	if err := s.get(ctx, name, "AoENode", obj); err != nil {
		return nil, err
	}
	return nodeOf(obj), nil
}

// ListNodes implements volume.Store.
func (s *KubernetesStore) ListNodes(ctx context.Context) ([]volume.Node, error) {
	var list v1alpha1.AoENodeList
	if err := s.client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list AoENodes: %w", err)
	}
	nodes := make([]volume.Node, 0, len(list.Items))
	for i := range list.Items {
		nodes = append(nodes, *nodeOf(&list.Items[i]))
	}
	return nodes, nil
}

// PutNode implements volume.Store. Nothing is written when nothing has changed.
func (s *KubernetesStore) PutNode(ctx context.Context, n *volume.Node) error {
	var err error
	for range staleRetries {
		obj := &v1alpha1.AoENode{}
		err = s.client.Get(ctx, client.ObjectKey{Name: n.Name}, obj)
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			break
		}
		spec, status := nodeSpecOf(n), nodeStatusOf(n)
		if !missing && equality.Semantic.DeepEqual(obj.Spec, spec) && equality.Semantic.DeepEqual(obj.Status, status) {
			return nil
		}
		obj.Spec, obj.Status = spec, status
		if missing {
			obj.ObjectMeta = metav1.ObjectMeta{Name: n.Name}
			err = s.client.Create(ctx, obj)
		} else {
			err = s.client.Update(ctx, obj)
		}
		if err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			break
		}
	}
	return fmt.Errorf("put AoENode %s: %w", n.Name, err)
}

// optionalTime leaves a zero time out of a resource, and cuts what it cannot hold.
func optionalTime(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t.Truncate(time.Second)}
}
