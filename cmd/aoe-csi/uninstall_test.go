package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func attachment(name, attacher, pv, node string, attached bool) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: storagev1.VolumeAttachmentSpec{
			Attacher: attacher, NodeName: node,
			Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv},
		},
		Status: storagev1.VolumeAttachmentStatus{Attached: attached},
	}
}

func TestCheckUninstall(t *testing.T) {
	const driver = "driver.aoe-csi.io"
	leaving := attachment("csi-3", driver, "pvc-3", "node3", true)
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	leaving.Finalizers = []string{"external-attacher/driver-aoe-csi-io"}
	tests := []struct {
		name    string
		objects []runtime.Object
		refused bool
		lines   []string
	}{
		{name: "nothing there", lines: []string{"no volume of driver.aoe-csi.io is attached"}},
		{name: "another driver's", objects: []runtime.Object{attachment("csi-0", "other.example", "pvc-0", "node1", true)},
			lines: []string{"no volume of driver.aoe-csi.io is attached"}},
		{name: "attached", objects: []runtime.Object{attachment("csi-1", driver, "pvc-1", "node1", true)},
			refused: true, lines: []string{"csi-1: pvc-1 is attached to node node1"}},
		{name: "on its way", objects: []runtime.Object{attachment("csi-2", driver, "pvc-2", "node2", false), leaving},
			refused: true, lines: []string{"csi-2: pvc-2 is being attached to node node2", "csi-3: pvc-3 is being detached from node node3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := checkUninstall(context.Background(), fake.NewClientset(tt.objects...), driver, &out)
			if (err != nil) != tt.refused {
				t.Errorf("error %v, want refused=%v", err, tt.refused)
			}
			if got, want := strings.TrimSpace(out.String()), strings.Join(tt.lines, "\n"); got != want {
				t.Errorf("output\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestCheckUninstallReadsEveryPage(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "volumeattachments", func(a clienttesting.Action) (bool, runtime.Object, error) {
		list := &storagev1.VolumeAttachmentList{}
		if a.(clienttesting.ListActionImpl).ListOptions.Continue == "" {
			list.Continue = "second"
		} else {
			list.Items = []storagev1.VolumeAttachment{*attachment("csi-9", "d", "pvc-9", "node9", true)}
		}
		return true, list, nil
	})
	if err := checkUninstall(context.Background(), client, "d", &bytes.Buffer{}); err == nil {
		t.Error("an attachment on the second page was overlooked")
	}
}

// When the list cannot be read nobody knows, so the answer is no.
func TestCheckUninstallUnknownIsRefused(t *testing.T) {
	client := fake.NewClientset()
	refusal := errors.New("forbidden")
	client.PrependReactor("list", "volumeattachments", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, refusal
	})
	if err := checkUninstall(context.Background(), client, "d", &bytes.Buffer{}); !errors.Is(err, refusal) {
		t.Errorf("error %v, want %v", err, refusal)
	}
}
