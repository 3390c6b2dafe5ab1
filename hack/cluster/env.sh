# shellcheck shell=bash
# Sourced by cluster.sh: names and addresses of the test cluster.

NETNS=aoe-csi-lab
API_ADDRESS=10.99.0.1   # the bridge of the pod and API network, in the namespace
API_PORT=6443
API_SERVICE=10.96.0.1   # what pods see as KUBERNETES_SERVICE_HOST
CLUSTER_DNS=10.96.0.10  # nobody answers there
SERVICE_RANGE=10.96.0.0/16
SHELL_PORT=2222         # root shell of a node, reachable inside the namespace only

node_number() { case $1 in node[1-9]) echo "${1#node}" ;; *) echo "no node $1: node1 … node9" >&2; return 1 ;; esac; }
node_address() { echo "10.99.0.$((10 + $1))"; }
node_pods() { echo "10.88.$1.0/24"; }
