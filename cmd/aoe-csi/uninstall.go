package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spf13/cobra"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func init() { commands = append(commands, newUninstallCheckCommand) }

// attachmentPage is how many VolumeAttachments are read at a time.
const attachmentPage = 500

func newUninstallCheckCommand() *cobra.Command {
	var kubeconfig, driverName string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall-check",
		Short: "Fail while volumes of the driver are attached anywhere in the cluster",
		Long: `Uninstall-check is what the chart runs before "helm uninstall": without the controller and the
node plugin nobody could unmount, detach and expel any more. It names the volumes and nodes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// An empty path means the service account of the pod.
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("read cluster access %q: %w", kubeconfig, err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return checkUninstall(ctx, client, driverName, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&kubeconfig, "kubeconfig", "", "file with the access to the cluster; empty: that of the pod")
	flags.StringVar(&driverName, "driver-name", "driver.aoe-csi.io", "name of the CSI driver")
	flags.DurationVar(&timeout, "timeout", time.Minute, "give up after")
	return cmd
}

// checkUninstall fails if a VolumeAttachment of the driver exists, after writing one line for each to out.
// An attachment counts as soon as it is asked for and until it is gone: both need the driver.
func checkUninstall(ctx context.Context, client kubernetes.Interface, driverName string, out io.Writer) error {
	found, err := attachmentsOf(ctx, client, driverName)
	if err != nil {
		return fmt.Errorf("list volume attachments: %w", err)
	}
	if len(found) == 0 {
		fmt.Fprintf(out, "no volume of %s is attached\n", driverName)
		return nil
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Spec.NodeName < found[j].Spec.NodeName })
	for i := range found {
		fmt.Fprintf(out, "%s: %s\n", found[i].Name, describeAttachment(&found[i]))
	}
	return fmt.Errorf("uninstall refused: %d volume(s) of %s in use; delete the pods that use them, wait for "+
		"`kubectl get volumeattachments` to be empty, and repeat (or keep the release: `helm rollback`)", len(found), driverName)
}

func attachmentsOf(ctx context.Context, client kubernetes.Interface, driverName string) ([]storagev1.VolumeAttachment, error) {
	var found []storagev1.VolumeAttachment
	opt := metav1.ListOptions{Limit: attachmentPage}
	for {
		page, err := client.StorageV1().VolumeAttachments().List(ctx, opt)
		if err != nil {
			return nil, err
		}
		for _, item := range page.Items {
			if item.Spec.Attacher == driverName {
				found = append(found, item)
			}
		}
		if opt.Continue = page.Continue; opt.Continue == "" {
			return found, nil
		}
	}
}

func describeAttachment(a *storagev1.VolumeAttachment) string {
	volume := "an inline volume"
	if a.Spec.Source.PersistentVolumeName != nil {
		volume = *a.Spec.Source.PersistentVolumeName
	}
	state := "being attached to"
	switch {
	case a.DeletionTimestamp != nil:
		state = "being detached from"
	case a.Status.Attached:
		state = "attached to"
	}
	return fmt.Sprintf("%s is %s node %s", volume, state, a.Spec.NodeName)
}
