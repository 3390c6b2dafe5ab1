// Package e2e tests the installed driver in a real Kubernetes with at least two nodes: claims,
// pods, moves, deletion, uninstalling. Its tests have the build tag e2e and are run by
// hack/cluster-test.sh; any cluster does whose KUBECONFIG is set and whose nodes have the images.
package e2e
