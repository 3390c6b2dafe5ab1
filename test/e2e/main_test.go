//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aoe-csi/aoe-csi/pkg/api/v1alpha1"
)

const (
	driverName  = "driver.aoe-csi.io"
	release     = "aoe-csi" // of Helm, and its namespace
	class       = "aoe"
	shelfLabel  = "aoe-csi.io/shelf"
	shelfNumber = "7"
)

// cluster is what all tests share.
var cluster struct {
	client.Client
	namespace string // of the pods and claims of this run
	storage   string // the node that is the shelf
	other     string // a node that is not
	image     string // of the pods: a busybox
}

func TestMain(m *testing.M) {
	if err := setUp(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: set up: %v\n%s", err, diagnosis(""))
		os.Exit(1)
	}
	code := m.Run()
	if err := tearDown(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: tear down: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func setUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	if err := connect(ctx); err != nil {
		return err
	}
	cluster.image = os.Getenv("AOE_CSI_E2E_IMAGE")
	if cluster.image == "" {
		cluster.image = "docker.io/library/busybox:1.37"
	}
	if err := chooseNodes(ctx); err != nil {
		return err
	}
	if err := install(ctx); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	if err := cluster.Create(ctx, ns); err != nil {
		return err
	}
	cluster.namespace = ns.Name
	return waitForDriver(ctx)
}

func tearDown() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return cluster.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: cluster.namespace}})
}

func connect(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return fmt.Errorf("KUBECONFIG=%q: %w", os.Getenv("KUBECONFIG"), err)
	}
	config.QPS, config.Burst = 50, 100
	log.SetLogger(klog.Background())
	scheme := clientgoscheme.Scheme
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	cluster.Client, err = client.New(config, client.Options{Scheme: scheme})
	return err
}

// chooseNodes takes the node that is labelled as a shelf, or labels the first one.
func chooseNodes(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := cluster.List(ctx, &nodes); err != nil {
		return err
	}
	if len(nodes.Items) < 2 {
		return fmt.Errorf("the cluster has %d node(s), the tests move pods between two", len(nodes.Items))
	}
	shelf := 0
	for i := range nodes.Items {
		if nodes.Items[i].Labels[shelfLabel] != "" {
			shelf = i
		}
	}
	node := &nodes.Items[shelf]
	if node.Labels[shelfLabel] == "" {
		before := node.DeepCopy()
		node.Labels[shelfLabel] = shelfNumber
		if err := cluster.Patch(ctx, node, client.MergeFrom(before)); err != nil {
			return err
		}
	}
	cluster.storage = node.Name
	cluster.other = nodes.Items[(shelf+1)%len(nodes.Items)].Name
	return nil
}

// install installs the chart of this source tree unless a release is there.
func install(ctx context.Context) error {
	if out, err := command(ctx, "helm", "status", release, "--namespace", release); err == nil && strings.Contains(out, "deployed") {
		return nil
	}
	return helmInstall(ctx)
}

func helmInstall(ctx context.Context) error {
	chart, err := filepath.Abs("../../charts/aoe-csi")
	if err != nil {
		return err
	}
	args := []string{"install", release, chart, "--namespace", release, "--create-namespace"}
	names, set := os.LookupEnv("AOE_CSI_E2E_INTERFACES")
	if !set && os.Getenv("AOE_CSI_CLUSTER") != "" {
		names = "eth1" // the storage network of hack/cluster.sh
	}
	if names != "" {
		args = append(args, "--set", "storageInterface={"+names+"}")
	}
	if onLab() {
		args = append(args, "--set-json", poolValues)
	}
	_, err = command(ctx, "helm", args...)
	return err
}

// waitForDriver waits until both nodes have the plugin and the scheduler knows of room.
func waitForDriver(ctx context.Context) error {
	for _, args := range [][]string{
		{"rollout", "status", "deployment/aoe-csi-controller"},
		{"wait", "--for=condition=Ready", "pod", "--selector=app.kubernetes.io/name=aoe-csi", "--timeout=180s"},
	} {
		if _, err := command(ctx, "kubectl", append([]string{"--namespace", release}, args...)...); err != nil {
			return err
		}
	}
	for _, node := range []string{cluster.storage, cluster.other} {
		path := fmt.Sprintf("jsonpath={.spec.drivers[?(@.name==%q)].nodeID}=%s", driverName, node)
		if _, err := command(ctx, "kubectl", "wait", "csinode/"+node, "--for="+path, "--timeout=120s"); err != nil {
			return err
		}
		if _, err := command(ctx, "kubectl", "wait", "--for=create", "aoenode/"+node, "--timeout=120s"); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program of the host and returns what it printed, both streams.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
