#!/usr/bin/env bash
# `make demo`: a claim becomes a mounted AoE disk in a real Kubernetes, and its data moves with the pod.
#
# Installs what it needs, builds, boots a cluster of two nodes, installs the chart, writes 64 MiB in a pod on node2, deletes the
# pod, and compares checksums in a second pod on node1, which is the storage host itself. Ends with one line and leaves
# nothing running, unless KEEP=1, which also uses a cluster that an earlier KEEP=1 left (with the images of then).
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"
need_root
CLUSTER=$ROOT/hack/cluster.sh
STEP=preparing
UP= # set once the cluster is ours to take down; an `up` that fails cleans up by itself
began=$SECONDS

step() { STEP=$*; printf '\n\033[1m==> %s\033[0m (%d s)\n' "$*" $((SECONDS - began)); }
k() { "$CLUSTER" kubectl "$@"; }
# show COMMAND…: prints a command as one would type it, and runs it.
show() { printf '\n$ %s\n' "$*"; "${@/#kubectl/k}"; }

finish() {
  local status=$?
  trap - EXIT INT TERM
  [ $status -eq 0 ] || diagnose
  if [ -z "$UP" ]; then
    : # nothing of ours is running
  elif [ -n "${KEEP:-}" ]; then
    usage
  else
    "$CLUSTER" down || status=1
  fi
  if [ $status -eq 0 ]; then
    echo "demo: OK: 64 MiB written on node2 and read back on node1, bit for bit, in $((SECONDS - began)) s"
  else
    echo "demo: FAILED while $STEP"
  fi
  exit $status
}

diagnose() {
  printf '\n--- diagnosis: failed while %s\n' "$STEP"
  [ -n "$UP" ] || return 0
  k get pods,pvc,pv,volumeattachments,aoevolumes,aoenodes -A -o wide || true
  k get events -A --sort-by=.lastTimestamp | tail -n 40 || true
  k describe pod writer reader 2>/dev/null | tail -n 60 || true
  local pod
  for pod in $(k -n aoe-csi get pods -o name 2>/dev/null); do
    printf -- '--- %s\n' "$pod"
    k -n aoe-csi logs "$pod" --all-containers --prefix --tail=25 || true
  done
} 2>&1

usage() {
  cat <<X

The cluster is left running. To look around:
  hack/cluster.sh kubectl get pvc,aoev
  hack/cluster.sh run bash                  # a shell with kubectl and helm
  hack/cluster.sh node-exec node2 lsblk     # a command as root of a node
  hack/cluster.sh down                      # the end
X
}

# succeeded POD: waits until a pod has ended well, and shows what it printed.
succeeded() {
  if ! k wait "pod/$1" --for=jsonpath='{.status.phase}'=Succeeded --timeout=120s; then
    k logs "$1" || true
    return 1
  fi
  k logs "$1" || { echo "$1: its log cannot be read"; return 1; }
}

# on NODE FILE: the pod of an example, on a node of our choice.
on() { k apply -f "$2" --dry-run=client -o json | jq ".spec.nodeSelector = {\"kubernetes.io/hostname\": \"$1\"}" | k apply -f -; }

start() {
  step "building programs and images"
  "$ROOT/hack/deps.sh"
  "$ROOT/hack/binaries.sh" build
  "$ROOT/hack/images.sh" build
  if [ -n "${KEEP:-}" ] && "$CLUSTER" status >/dev/null 2>&1; then
    step "using the cluster that is up"
    UP=1
    k delete pod writer reader --ignore-not-found
    k delete pvc data --ignore-not-found
    return
  fi
  step "booting a Kubernetes with two nodes"
  # The chart can be installed while the nodes are still booting.
  CLUSTER_WAIT=${CLUSTER_WAIT:-600} NO_WAIT=1 "$CLUSTER" up
  UP=1
}

# registered NODE: has the kubelet accepted the plugin?
registered() { [[ " $(k get csinode "$1" -o 'jsonpath={.spec.drivers[*].name}') " == *" driver.aoe-csi.io "* ]]; }

install_driver() {
  step "installing the chart"
  "$CLUSTER" helm upgrade --install aoe-csi "$ROOT/charts/aoe-csi" -n aoe-csi --create-namespace --set 'storageInterface={eth1}'
  "$CLUSTER" wait
  step "making node1 shelf 7"
  # After the controller has made the certificates: a pod that misses its Secret is retried ever more slowly.
  k -n aoe-csi wait --for=create secret/aoe-csi-shelf-tls --timeout=180s
  k label --overwrite node node1 aoe-csi.io/shelf=7
  step "waiting for the driver"
  local node
  for node in node1 node2; do
    wait_for 180 "the driver on $node" registered "$node"
  done
  k -n aoe-csi rollout status deployment/aoe-csi-controller --timeout=180s
  k -n aoe-csi wait daemonset/aoe-csi-target --for=jsonpath='{.status.numberReady}'=1 --timeout=180s
}

move_data() {
  step "writing 64 MiB of random data in a pod on node2"
  k apply -f examples/pvc.yaml
  on node2 examples/writer.yaml
  succeeded writer
  show kubectl get pvc,pv,volumeattachment,aoev
  step "deleting the pod and reading in another one, on node1, the storage host"
  k delete pod writer --wait --timeout=90s
  on node1 examples/reader.yaml
  succeeded reader
}

look() {
  step "what Kubernetes knows"
  show kubectl get pvc,pv,volumeattachment,aoev
  show kubectl describe aoev
  show kubectl describe volumeattachment
  show kubectl describe pvc data
  show kubectl describe pod reader
}

trap finish EXIT
trap 'STEP+=" (interrupted)"; exit 130' INT
trap 'STEP+=" (told to end)"; exit 143' TERM
start
install_driver
move_data
look
